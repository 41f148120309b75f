"""Sessions that are remembered: what the upstream is given of earlier runs, and when nothing is."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine import Engine, Submission
from orchestrator.runs import Principal
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.engines import ACME, OTHER, an_engine, until

AGENT = {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"}
MODELS = {"forgets": AGENT, "remembers": {**AGENT, "memory": {"max_tokens": 17, "max_turns": 3}}}


class Ticking:
    """No two moments are the same: runs that begin in one millisecond have no order."""

    def __init__(self) -> None:
        self._now = 1_790_000_000.0

    def time(self) -> float:
        self._now += 0.001
        return self._now


class Listening(ScriptedUpstream):
    """Notes what it is asked."""

    def __init__(self) -> None:
        super().__init__("demo")
        self.asked: list[list[dict[str, Any]]] = []

    def stream(self, call: Any) -> Any:
        self.asked.append(call.body["messages"])
        return super().stream(call)


async def ask(
    engine: Engine, text: str, *, model: str = "remembers", session: str | None = "s", who: Principal = ACME, before: Any = ()
) -> None:
    messages = [*before, {"role": "user", "content": f'/script\nsay "{text}"'}]
    run = await engine.submit(who, Submission(model, {"messages": messages}, session_id=session))
    await until(engine, run.id, "STREAM_END", who)


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f'/script\nsay "{text}"'}, {"role": "assistant", "content": text}]


async def test_earlier_turns_stand_between_instructions_and_question() -> None:
    upstream = Listening()
    async with an_engine(models=MODELS, upstream=upstream, clock=Ticking()) as engine:
        await ask(engine, "one")
        await ask(engine, "two")
        await ask(engine, "three", before=[{"role": "system", "content": "Be brief."}])
    system, *rest = upstream.asked[-1]
    assert system == {"role": "system", "content": "Be brief."}
    assert rest == [*turn("one"), *turn("two"), turn("three")[0]]


async def test_the_latest_turns_are_kept_within_the_bound() -> None:
    upstream = Listening()
    async with an_engine(models=MODELS, upstream=upstream, clock=Ticking()) as engine:
        for text in ("one", "two", "three", "four"):
            await ask(engine, text)
    assert upstream.asked[-1] == [*turn("two"), *turn("three"), turn("four")[0]]


@pytest.mark.parametrize(
    "asked",
    [
        {"model": "forgets"},
        {"session": "another"},
        {"session": None},
        {"who": OTHER},
        {"before": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
)
async def test_nothing_is_remembered_where_nobody_asked_for_it(asked: dict[str, Any]) -> None:
    upstream = Listening()
    async with an_engine(models=MODELS, upstream=upstream, clock=Ticking()) as engine:
        await ask(engine, "one")
        await ask(engine, "two", **asked)
    assert upstream.asked[-1] == [*asked.get("before", ()), turn("two")[0]]


async def test_failed_runs_are_not_remembered() -> None:
    upstream = Listening()
    async with an_engine(models=MODELS, upstream=upstream, clock=Ticking()) as engine:
        run = await engine.submit(
            ACME, Submission("remembers", {"messages": [{"role": "user", "content": "/script\nstatus 400"}]}, session_id="s")
        )
        await until(engine, run.id, "STREAM_END")
        await ask(engine, "two")
    assert upstream.asked[-1] == [turn("two")[0]]
