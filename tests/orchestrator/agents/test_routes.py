"""What becomes of an agent whose call takes a detour: what its log says, what it costs, and which sockets are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from orchestrator.agents.job import Interrupted, Stop
from orchestrator.events import Event, EventType
from orchestrator.runs import RunState
from orchestrator.upstreams.config import BreakerConfig, ScriptedConfig
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.agents.world import World, said, types

HEDGED: Mapping[str, Any] = {"upstream": ["a", "b"], "route": {"hedge": {"after_s": 0.01, "max_share": 1}}}
ASKED = {"messages": [{"role": "user", "content": "What is two and one?"}]}


class Detour:
    """A world whose agent asks `a` and `b`, each with a script of its own."""

    def __init__(self, a: str, b: str, breaker: BreakerConfig | None = None) -> None:
        scripts = {"a": a, "b": b}
        self.upstreams = {
            name: ScriptedUpstream(name, ScriptedConfig(kind="scripted", script=script)) for name, script in scripts.items()
        }
        self.world = World(router=Router(self.upstreams, breakers=dict.fromkeys(scripts, breaker)))

    async def run(self, **step: Any) -> tuple[RunState, list[Event]]:
        job = await self.world.job("", body=ASKED, **{"upstream": ["a", "b"], **step})
        result = await self.world.work(job)
        return result.state, await self.world.events(job.run.id)

    @property
    def calls(self) -> list[tuple[str, str | None, int]]:
        """Who was asked, how it ended, and how many pieces it gave."""
        calls = [(call, name) for name, upstream in self.upstreams.items() for call in upstream.witness.calls]
        return [(name, call.ending, call.pieces) for call, name in sorted(calls, key=lambda item: item[0].started)]


@pytest.fixture
async def detours() -> AsyncIterator[list[Detour]]:
    """Worlds to be closed."""
    made: list[Detour] = []
    yield made
    for detour in made:
        await detour.world.close()


def payloads(events: list[Event], event_type: EventType) -> list[dict[str, Any]]:
    return [event.payload or {} for event in events if event.type == event_type]


def told(output: dict[str, Any]) -> tuple[Any, ...]:
    return output["upstream"], output.get("aborted", False), output.get("hedged", False), output["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("policy", "continues", "pieces"), [("continue", True, 3), ("continue", False, 5), ("regenerate", True, 5)]
)
async def test_the_next_upstream_takes_a_cut_answer_over(
    detours: list[Detour], policy: str, continues: bool, pieces: int
) -> None:
    """It goes on where it can and may; else it says all again, and readers see one answer either way."""
    detours.append(detour := Detour('say "two and "; cut', 'say "two and one"'))
    detour.upstreams["b"].continues = continues  # type: ignore[misc]
    state, events = await detour.run(on_cut=policy)
    assert (state, said(events)) == (RunState.COMPLETED, "two and one")
    assert EventType.OUTPUT_RESET not in types(events)
    assert payloads(events, EventType.AGENT_RETRYING) == [
        {"attempt": 2, "error": "upstream_cut", "delay_s": 0.0, "upstream": "a"},
    ]
    assert [told(output)[:3] for output in payloads(events, EventType.LLM_OUTPUT)] == [("a", True, False), ("b", False, False)]
    assert detour.calls == [("a", "cut", 3), ("b", "completed", pieces)]


async def test_who_was_passed_over_is_told_by_name(detours: list[Detour]) -> None:
    detours.append(detour := Detour("status 503", 'say "three"'))
    state, events = await detour.run(route={"retry": {"attempts": 2, "delay_s": 0.001, "jitter": 0}})
    assert (state, said(events)) == (RunState.COMPLETED, "three")
    again = {"error": "upstream_rejected", "upstream": "a"}
    assert payloads(events, EventType.AGENT_RETRYING) == [
        {"attempt": 1, "delay_s": 0.001, "next_upstream": "a", **again},
        {"attempt": 2, "delay_s": 0.0, "next_upstream": "b", **again},
    ]


async def test_a_hedge_is_told_and_what_it_cost_is_counted(detours: list[Detour]) -> None:
    """Both prompts are paid for. The loser's call is told before the answer's, so that the last `LLM_OUTPUT` is the answer."""
    detours.append(detour := Detour("hang", 'usage 7 1; say "three"'))
    state, events = await detour.run(**HEDGED)
    assert (state, said(events)) == (RunState.COMPLETED, "three")
    outputs = payloads(events, EventType.LLM_OUTPUT)
    assert [told(output) for output in outputs] == [("a", True, True, 0), ("b", False, True, 1)]
    assert [output["call_id"] for output in outputs] == ["agent-1-1-hedge", "agent-1-1"]
    assert payloads(events, EventType.WORKFLOW_COMPLETED)[0]["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 1,
        "total_tokens": 15,
        "estimated": True,
    }
    assert [(name, ending) for name, ending, _ in detour.calls] == [("a", "cancelled"), ("b", "completed")]


async def test_a_second_that_fails_costs_nothing(detours: list[Detour]) -> None:
    detours.append(detour := Detour('wait 50ms; say "three"', "status 503"))
    state, events = await detour.run(**HEDGED)
    assert (state, said(events)) == (RunState.COMPLETED, "three")
    assert [told(output)[:3] for output in payloads(events, EventType.LLM_OUTPUT)] == [("a", False, True)]
    assert payloads(events, EventType.AGENT_RETRYING)[0]["next_upstream"] == "a"


async def test_cancelling_during_a_hedge_closes_both_and_says_what_both_cost(detours: list[Detour]) -> None:
    detours.append(detour := Detour("hang", "hang"))
    world = detour.world
    job = await world.job("", body=ASKED, **HEDGED)
    work = asyncio.create_task(world.work(job))
    await detour.upstreams["b"].witness.nth(0)
    assert world.desk.stop(job.run.id, Stop("cancelled", "enough", "key"))
    assert (await work).state is RunState.CANCELLED
    events = await world.events(job.run.id)
    assert [told(output) for output in payloads(events, EventType.LLM_OUTPUT)] == [("b", True, True, 0), (None, True, True, 0)]
    assert types(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert [(name, ending) for name, ending, _ in detour.calls] == [("a", "cancelled"), ("b", "cancelled")]


@pytest.mark.parametrize("kind", ["shutdown", "paused"])
async def test_breaking_off_during_a_hedge_closes_both_and_another_attempt_goes_on(detours: list[Detour], kind: str) -> None:
    detours.append(detour := Detour('once hang; say "three"', 'once hang; say "three"'))
    world = detour.world
    job = await world.job("", body=ASKED, **HEDGED)
    work = asyncio.create_task(world.work(job))
    await detour.upstreams["b"].witness.nth(0)
    if kind == "paused":
        assert world.desk.pause(job.run.id)
        assert (await work).state is RunState.PAUSED
    else:
        world.desk.stop_all(Stop("shutdown"))
        with pytest.raises(Interrupted):
            await work
    assert [(name, ending) for name, ending, _ in detour.calls] == [("a", "cancelled"), ("b", "cancelled")]
    assert (await world.work(msgspec.structs.replace(job, attempt=2))).state is RunState.COMPLETED


async def test_the_steps_time_closes_both(detours: list[Detour]) -> None:
    detours.append(detour := Detour("hang", "hang"))
    state, events = await detour.run(**HEDGED, timeout_s=0.1)
    assert state is RunState.TIMEOUT
    assert payloads(events, EventType.WORKFLOW_FAILED)[0]["error"]["code"] == "timeout"
    assert [(name, ending) for name, ending, _ in detour.calls] == [("a", "cancelled"), ("b", "cancelled")]


async def test_half_an_answer_waits_for_an_upstream_that_is_left_alone(detours: list[Detour]) -> None:
    """The only upstream breaks off, and its circuit opens. It used to use up all attempts at once."""
    breaker = BreakerConfig(failures=1, open_s=0.05)
    detours.append(detour := Detour('say "two "; once cut; say "and one"', "cut", breaker))
    state, events = await detour.run(upstream="a", on_cut="continue")
    assert (state, said(events)) == (RunState.COMPLETED, "two and one")
    retried = payloads(events, EventType.AGENT_RETRYING)
    assert [retry["error"] for retry in retried] == ["upstream_cut", "upstream_unavailable"]
    assert 0 < retried[1]["delay_s"] <= 0.05


async def test_an_upstream_that_is_left_alone_is_told_as_such(detours: list[Detour]) -> None:
    detours.append(detour := Detour("cut", "cut", BreakerConfig(failures=1, open_s=60)))
    await detour.run()
    state, events = await detour.run()
    assert state is RunState.FAILED
    error = payloads(events, EventType.WORKFLOW_FAILED)[0]["error"]
    assert (error["code"], error["status"], 59 < error["retry_after_s"] <= 60) == ("upstream_unavailable", 503, True)


async def test_who_was_left_alone_is_named_by_the_answer_of_another(detours: list[Detour]) -> None:
    detours.append(detour := Detour("cut", 'say "three"', BreakerConfig(failures=1, open_s=60)))
    named = []
    for _ in range(2):
        _, events = await detour.run()
        named += [output.get("passed_over") for output in payloads(events, EventType.LLM_OUTPUT)]
    assert named == [None, ["a"]]
    assert [name for name, _, _ in detour.calls] == ["a", "b", "b"]


async def test_no_wait_is_longer_than_the_step(detours: list[Detour]) -> None:
    """The upstream asks for five seconds, and the step has two: the client is told the five, at once."""
    detours.append(detour := Detour("status 429 retry-after 5", "cut"))
    state, events = await detour.run(upstream="a", timeout_s=2, route={"retry": {"attempts": 3}})
    error = payloads(events, EventType.WORKFLOW_FAILED)[0]["error"]
    assert (state, error["status"], error["retry_after_s"]) == (RunState.FAILED, 429, 5.0)
    assert len(detour.calls) == 1


@pytest.mark.parametrize(("budget", "hedged"), [(1000, True), (20, False)])
async def test_a_second_call_that_the_budget_cannot_pay_is_not_made(detours: list[Detour], budget: int, hedged: bool) -> None:
    detours.append(detour := Detour('wait 100ms; say "three"', 'say "three"'))
    job = await detour.world.job("", body=ASKED, **HEDGED)
    job = msgspec.structs.replace(job, run=msgspec.structs.replace(job.run, budget_tokens=budget))
    assert (await detour.world.work(job)).state is RunState.COMPLETED
    events = await detour.world.events(job.run.id)
    assert said(events) == "three"
    assert [name for name, _, _ in detour.calls] == (["a", "b"] if hedged else ["a"])
    assert payloads(events, EventType.WORKFLOW_COMPLETED)[0]["usage"]["total_tokens"] <= budget
