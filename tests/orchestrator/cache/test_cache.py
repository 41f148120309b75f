"""Answers given again: to whom, for how long, and when not. In one process or another, over one log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from orchestrator.clock import SystemClock
from orchestrator.engine import CacheUse, Decision, Idempotency, Submission
from orchestrator.errors import RunConflict
from orchestrator.events import Event
from orchestrator.runs import Cached, ChatOptions, Principal, Run, RunState
from orchestrator.streamlog.memory import MemoryStore
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.engines import ACME, OTHER, script
from tests.orchestrator.processes import Process, Shared, kinds, payload

AGENT = {"upstream": "demo"}


def models(durability: str = "none", **cache: Any) -> dict[str, Any]:
    cached = {"plan": {"agent": AGENT}, "durability": durability, "cache": {"exact": True, "any_temperature": True, **cache}}
    return {"cached": cached, "other": cached, "never": {"plan": {"agent": AGENT}, "durability": "none"}}


class Moving(SystemClock):
    """A clock that can be put forward."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


@pytest.fixture
def clock() -> Moving:
    return Moving()


@pytest.fixture
def shared(clock: Moving) -> Shared:
    return Shared(clock=clock)


@pytest.fixture
async def here(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process(models()) as process:
        yield process


def ask(text: str = 'say "one two"', model: str = "cached", *, use: CacheUse = "use", **more: Any) -> Submission:
    return script(text, model, cache=use, **more)


async def answered(process: Process, submission: Submission, principal: Principal = ACME) -> tuple[Run, list[Event]]:
    """The run, and all its events, when it has ended."""
    run = await process.engine.submit(principal, submission)
    return run, await process.events(run.id, principal)


def said(events: list[Event]) -> list[Event]:
    """What was said in them, whenever that was."""
    return [msgspec.structs.replace(event, timestamp="") for event in events[1:-2]]


def calls(shared: Shared) -> int:
    return len(shared.upstream.witness.calls)


async def test_the_same_question_is_given_the_same_answer_by_a_run_of_its_own(shared: Shared, here: Process) -> None:
    first, events = await answered(here, ask())
    options = ChatOptions(include_usage=True)
    again, repeated = await answered(here, ask(options=options, session_id="s", metadata={"a": "b"}))
    assert calls(shared) == 1
    assert said(repeated) == said(events)
    assert payload(repeated[0]) == {"model": "cached", "answers": ["agent"], "durable": False, "cached_from": first.id}
    assert payload(repeated[-2]) == {**payload(events[-2]), "duration_ms": 0}
    assert {event.timestamp for event in repeated} == {repeated[0].timestamp}
    assert (again.id != first.id, again.repeated) == (True, False)
    assert (first.cached, again.cached) == (None, Cached(first.id))
    known = await here.engine.get(ACME, again.id)
    assert (known.state, known.options, known.session_id, known.metadata) == (RunState.COMPLETED, options, "s", {"a": "b"})
    assert known.cached == again.cached
    assert known.started_ms is not None
    assert known.ended_ms is not None
    assert [run.id for run in (await here.engine.list(ACME)).runs] == [again.id, first.id]
    executed = ["miss", "started", "first token", RunState.COMPLETED]
    assert here.metrics.calls == [*executed, "exact", "started", RunState.COMPLETED]


async def test_a_run_that_repeats_another_is_over_and_cannot_be_controlled(here: Process) -> None:
    await answered(here, ask())
    again = await here.engine.submit(ACME, ask())
    for control in (here.engine.cancel, here.engine.pause, here.engine.resume):
        with pytest.raises(RunConflict):
            await control(ACME, again.id)
    assert await here.engine.timeline(ACME, again.id) == ()
    assert (await here.engine.details(ACME, again.id)).result == "one two"


async def test_no_engine_is_needed_to_repeat_what_a_durable_model_said(shared: Shared, here: Process) -> None:
    """Temporal is away in this test: what would have to be executed could not be."""
    first, events = await answered(here, ask())
    async with shared.process(models("temporal")) as there:
        again, repeated = await answered(there, ask())
    assert again.cached == Cached(first.id)
    assert not again.durable
    assert said(repeated) == said(events)


async def test_nobody_else_is_given_it(shared: Shared, here: Process) -> None:
    await answered(here, ask())
    theirs, _ = await answered(here, ask(), OTHER)
    assert (theirs.cached, calls(shared)) == (None, 2)
    again, _ = await answered(here, ask(), OTHER)
    assert again.cached == Cached(theirs.id)


@pytest.mark.parametrize(
    "other",
    [ask('say "two"'), ask(model="other"), msgspec.structs.replace(ask(), body={**ask().body, "temperature": 0.5})],
)
async def test_another_question_is_another(shared: Shared, here: Process, other: Submission) -> None:
    await answered(here, ask())
    run, _ = await answered(here, other)
    assert (run.cached, calls(shared)) == (None, 2)


async def test_a_model_without_a_cache_has_none(shared: Shared, here: Process) -> None:
    for _ in range(2):
        run, _ = await answered(here, ask(model="never"))
        assert run.cached is None
    assert not shared.store.reservations
    assert "miss" not in here.metrics.calls


async def test_a_changed_plan_is_another_question(shared: Shared, here: Process) -> None:
    await answered(here, ask())
    changed = models()
    changed["cached"] = {**changed["cached"], "plan": {"agent": {**AGENT, "system": "Be brief."}}}
    async with shared.process(changed) as there:
        run, _ = await answered(there, ask())
        assert run.cached is None
        again, _ = await answered(there, ask())
        assert again.cached == Cached(run.id)


@pytest.mark.parametrize("text", ["status 500", "status 400", 'say "one"; cut', 'say "one"; finish length', "call f {}"])
async def test_what_is_no_whole_answer_is_not_given_again(shared: Shared, here: Process, text: str) -> None:
    for number in (1, 2):
        run, _ = await answered(here, ask(text))
        assert (run.cached, calls(shared)) == (None, number)


async def test_a_failure_does_not_stand_in_the_way_of_a_success(shared: Shared) -> None:
    question = Submission("cached", {"messages": [{"role": "user", "content": "Why?"}]})
    told = []
    for does in ("status 400", 'say "Because."', 'say "No reason."'):
        shared.upstreams = {"demo": ScriptedUpstream("demo", ScriptedConfig(kind="scripted", script=does))}
        async with shared.process(models()) as here:
            run, events = await answered(here, question)
            told.append((run.cached is not None, payload(events[-2]).get("result")))
    assert told == [(False, None), (False, "Because."), (True, "Because.")]


async def test_a_cancelled_run_is_not_given_again_and_the_next_one_is(shared: Shared, here: Process) -> None:
    first = await here.engine.submit(ACME, ask("say 1 words; hang"))
    await here.until(first.id, "LLM_PARTIAL")
    await here.engine.cancel(ACME, first.id)
    await here.events(first.id)
    held = next(iter(shared.store.reservations.values()))[0]
    assert held.run_id == first.id
    second = await here.engine.submit(ACME, ask("say 1 words; hang"))
    assert second.cached is None
    assert next(iter(shared.store.reservations.values()))[0].run_id == second.id
    await here.engine.cancel(ACME, second.id)
    await here.events(second.id)


async def test_who_asks_while_the_first_is_answered_is_answered_too_and_the_first_is_kept(shared: Shared, here: Process) -> None:
    runs = await asyncio.gather(*(here.engine.submit(ACME, ask("rate 200/s; say 5 words")) for _ in range(10)))
    for run in runs:
        await here.events(run.id)
    assert calls(shared) == 10
    assert {run.cached for run in runs} == {None}
    again, _ = await answered(here, ask("rate 200/s; say 5 words"))
    assert again.cached is not None
    assert again.cached.run_id in {run.id for run in runs}
    third, _ = await answered(here, ask("rate 200/s; say 5 words"))
    assert third.cached == again.cached


async def test_it_is_given_for_as_long_as_the_model_says(shared: Shared, clock: Moving) -> None:
    async with shared.process(models(ttl_s=60)) as here:
        first, _ = await answered(here, ask())
        clock.ahead_s = 59.0
        again, _ = await answered(here, ask())
        assert again.cached == Cached(first.id)
        clock.ahead_s = 61.0
        second, _ = await answered(here, ask())
        assert second.cached is None
        again, _ = await answered(here, ask())
        assert again.cached == Cached(second.id)


async def test_what_is_gone_is_asked_anew(shared: Shared, here: Process) -> None:
    first, _ = await answered(here, ask())
    del shared.store.records[first.id]
    second, _ = await answered(here, ask())
    assert second.cached is None
    again, _ = await answered(here, ask())
    assert again.cached == Cached(second.id)


async def test_a_log_that_forgot_everything_is_a_cache_that_did(shared: Shared, here: Process) -> None:
    await answered(here, ask())
    shared.store.records.clear()
    shared.store.reservations.clear()
    run, _ = await answered(here, ask())
    assert run.cached is None


async def test_a_log_that_was_trimmed_gives_nothing(shared: Shared) -> None:
    shared.store = MemoryStore(shared.clock.time, max_events=8)
    async with shared.process(models()) as process:
        for _ in range(2):
            run = await process.engine.submit(ACME, ask("say 20 words"))
            assert run.cached is None
            async with process.engine.subscribe(ACME, run.id) as subscription:
                while not subscription.ended:
                    await subscription.next(5.0)


@pytest.mark.parametrize(("use", "afterwards"), [("renew", "second"), ("avoid", "first")])
async def test_a_request_may_ask_for_a_new_answer(shared: Shared, here: Process, use: CacheUse, afterwards: str) -> None:
    """One that others are given from then on, or one that the cache has nothing to do with."""
    first, _ = await answered(here, ask())
    second, _ = await answered(here, ask(use=use))
    assert (second.cached, calls(shared)) == (None, 2)
    third, _ = await answered(here, ask())
    assert third.cached == Cached({"first": first, "second": second}[afterwards].id)


async def test_only_certain_answers_unless_the_model_says_otherwise(shared: Shared) -> None:
    async with shared.process(models(any_temperature=False)) as here:
        for temperature, expected in ((None, False), (0.7, False), (0, True)):
            body = {**ask().body, **({} if temperature is None else {"temperature": temperature})}
            runs = [(await answered(here, msgspec.structs.replace(ask(), body=body)))[0] for _ in range(2)]
            assert (runs[1].cached is not None) is expected


async def test_a_key_of_idempotency_stands_for_the_run_that_repeated(shared: Shared, here: Process) -> None:
    first, _ = await answered(here, ask())
    keyed = ask(idempotency=Idempotency("k", "digest"))
    runs = await asyncio.gather(*(here.engine.submit(ACME, keyed) for _ in range(10)))
    assert {run.id for run in runs} == {runs[0].id}
    assert {run.cached for run in runs} == {Cached(first.id)}
    assert sorted(run.repeated for run in runs) == [False] + [True] * 9
    assert calls(shared) == 1


async def test_an_answer_of_many_pieces_is_read_from_its_beginning(shared: Shared, here: Process) -> None:
    first, events = await answered(here, ask("say 3000 words"))
    again, repeated = await answered(here, ask("say 3000 words"))
    assert again.cached == Cached(first.id)
    assert said(repeated) == said(events)
    assert kinds(repeated) == kinds(events)


async def test_what_was_repeated_is_archived_as_having_cost_nothing(shared: Shared, here: Process) -> None:
    first, _ = await answered(here, ask(session_id="s"))
    again, _ = await answered(here, ask(session_id="s"))
    spent = (await here.engine.details(ACME, first.id)).usage
    assert spent is not None
    assert (await here.engine.details(ACME, again.id)).usage == spent
    assert (await here.engine.session(ACME, "s")).tokens == spent.total_tokens


def says(name: str, words: int) -> dict[str, Any]:
    agent = {"name": name, "upstream": "demo", "input": f"/script\nsay {words} words", "parameters": {"temperature": 0}}
    return {"agent": agent}


TEAM = {
    "sequential": [
        {"parallel": [says("left", 5), says("right", 7)]},
        {"agent": {"name": "writer", "upstream": "demo", "answers": True}},
    ]
}


async def test_a_whole_teams_work_is_shown_again(shared: Shared) -> None:
    team = {"team": {"plan": TEAM, "durability": "none", "cache": {"exact": True}}}
    question = msgspec.structs.replace(ask(model="team"), body={**ask().body, "temperature": 0})
    async with shared.process(team) as here:
        first, events = await answered(here, question)
        again, repeated = await answered(here, question)
    assert again.cached == Cached(first.id)
    assert said(repeated) == said(events)
    assert {event.agent_id for event in repeated} >= {"left", "right", "writer"}
    assert payload(repeated[-2])["result"] == "one two"
    assert calls(shared) == 3


@pytest.mark.parametrize("allowed", [True, False])
async def test_an_approved_answer_only_where_that_is_allowed(shared: Shared, allowed: bool) -> None:
    plan = {"sequential": [{"approval": {"action": "answer"}}, {"agent": {"upstream": "demo"}}]}
    cache = {"exact": True, "any_temperature": True, "side_effects": allowed}
    async with shared.process({"reviewed": {"plan": plan, "durability": "none", "cache": cache}}) as here:
        first = await here.engine.submit(ACME, ask(model="reviewed"))
        await here.until(first.id, "APPROVAL_REQUESTED")
        (waiting,) = await here.engine.approvals(ACME)
        await here.engine.decide(ACME, first.id, Decision(waiting.approval_id, approved=True))
        await here.events(first.id)
        second = await here.engine.submit(ACME, ask(model="reviewed"))
        assert second.cached == (Cached(first.id) if allowed else None)
        if not allowed:
            await here.until(second.id, "APPROVAL_REQUESTED")
            await here.engine.cancel(ACME, second.id)
        await here.events(second.id)


async def test_what_a_session_remembers_is_a_part_of_the_question(shared: Shared) -> None:
    """Also what it was answered from the cache."""
    remembering = {"m": {**models()["cached"], "memory": {"max_tokens": 1000, "max_turns": 3}}}
    async with shared.process(remembering) as here:
        first, second, *others = [
            (await answered(here, ask(model="m", session_id=session)))[0] for session in ("a", "a", "b", "b", "b")
        ]
    assert (first.cached, second.cached) == (None, None)
    assert [other.cached for other in others] == [Cached(first.id), Cached(second.id), None]
