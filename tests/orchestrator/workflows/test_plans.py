"""Durable plans end to end on real Temporal: what is said in which order, and what becomes of branches when things go wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from temporalio.client import Client

from orchestrator.engine import Decision
from orchestrator.events import Event
from orchestrator.plans.plan import Plan
from orchestrator.runs import RunState
from orchestrator.workflows.messages import RunInput
from orchestrator.workflows.run_workflow import WORKFLOW
from tests.orchestrator.engines import ACME, script
from tests.orchestrator.processes import Process, Shared, kinds, payload
from tests.orchestrator.workflows.test_runs import decoded, history_of, types

pytestmark = pytest.mark.local


def agent(name: str, says: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{says}", **more}}


LAST = agent("last", 'say "end"', answers=True)


def planned(plan: Mapping[str, Any], **entry: Any) -> dict[str, Any]:
    return {"planned": {"plan": plan, **entry}}


def team(*branches: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"sequential": [{"parallel": {"name": "team", "branches": list(branches), **more}}, LAST]}


def progress(events: list[Event]) -> list[tuple[str, str]]:
    return [(payload(event)["step_name"], payload(event)["status"]) for event in events if event.type == "PROGRESS"]


def fractions(events: list[Event]) -> list[float]:
    return [payload(event)["progress"] for event in events if event.type == "PROGRESS"]


def assert_monotone(events: list[Event]) -> None:
    found = fractions(events)
    assert found == sorted(found)
    assert len(progress(events)) == len(set(progress(events)))


def error(events: list[Event]) -> dict[str, Any]:
    assert events[-2].type == "WORKFLOW_FAILED", kinds(events)
    found: dict[str, Any] = payload(events[-2])["error"]
    return found


@pytest.fixture(params=["temporal", "none"])
def durability(request: pytest.FixtureRequest) -> str:
    """Both ways to carry out a plan say the same."""
    return str(request.param)


async def asked(process: Process, **body: Any) -> str:
    submission = script("", "planned")
    return (await process.engine.submit(ACME, msgspec.structs.replace(submission, body={**submission.body, **body}))).id


async def test_steps_are_told_in_the_order_in_which_they_happen(shared: Shared, durability: str) -> None:
    plan = team(agent("slow", 'wait 150ms; say "s"'), agent("fast", 'say "f"'))
    async with shared.process(planned(plan, durability=durability)) as process:
        events = await process.events(await asked(process))
    assert progress(events)[0] == ("team", "started")
    assert sorted(progress(events)[1:3]) == [("fast", "started"), ("slow", "started")]
    assert progress(events)[3:] == [
        ("fast", "completed"),
        ("slow", "completed"),
        ("team", "completed"),
        ("last", "started"),
        ("last", "completed"),
    ]
    assert fractions(events) == [0, 0, 0, 0.25, 0.5, 0.5, 0.5, 1.0]
    assert payload(events[-2])["result"] == "end"


async def test_an_agent_may_be_called_as_the_plan_is(shared: Shared, durability: str) -> None:
    """The writer of a plan's progress was named `plan`: both took the other for a repetition."""
    plan = {"sequential": [agent("plan", 'say "one two"'), agent("engine", 'say "{{ outputs.plan }}"', answers=True)]}
    async with shared.process(planned(plan, durability=durability)) as process:
        events = await process.events(await asked(process))
    assert payload(events[-2])["result"] == "one two"
    assert [name for name, _ in progress(events)] == ["plan", "plan", "engine", "engine"]


async def test_only_the_agent_that_answers_is_asked_what_the_client_asked_for(shared: Shared, durability: str) -> None:
    plan = {"sequential": [agent("first", 'say "one"', parameters={"seed": 1}), LAST]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    wanted = {"tools": tools, "response_format": {"type": "json_object"}, "max_tokens": 7, "temperature": 0.5}
    async with shared.process(planned(plan, durability=durability)) as process:
        await process.events(await asked(process, **wanted))
    first, last = (call.body for call in shared.upstream.witness.calls)
    assert sorted(first) == ["messages", "seed"]
    assert {key: last[key] for key in wanted} == wanted


async def test_a_branch_that_fails_closes_the_others_upstreams(shared: Shared, durability: str) -> None:
    plan = team(agent("a", 'say "x"; hang'), agent("b", "hang"), agent("bad", "wait 100ms; status 400"))
    async with shared.process(planned(plan, durability=durability)) as process:
        events = await process.events(await asked(process))
    calls = shared.upstream.witness.calls
    failed = next(call.ended for call in calls if call.ending == "failed")
    closed = [call.ended for call in calls if call.ending == "cancelled"]
    assert len(closed) == 2
    assert max(ended - failed for ended in closed if ended and failed) < 0.25
    assert error(events)["message"].startswith("branch 'bad': ")
    assert error(events)["status"] == 400
    assert ("bad", "failed") in progress(events)
    assert ("a", "cancelled") in progress(events)
    assert ("team", "failed") in progress(events)
    assert not any(name == "last" for name, _ in progress(events))


@pytest.mark.parametrize("waits", [False, True])
async def test_what_a_cancelled_branch_said_is_kept(shared: Shared, waits: bool) -> None:
    """It was given up as if another attempt would follow: its words had no end, and what they cost was not counted."""
    beside = [{"approval": {"action": "wait"}}] if waits else []
    plan = team(agent("a", 'say "one two"; hang'), agent("bad", "wait 150ms; status 400"), *beside)
    async with shared.process(planned(plan)) as process:
        events = await process.events(await asked(process))
    said = [event for event in events if event.type == "LLM_OUTPUT" and event.agent_id == "a"]
    assert [(event.message, payload(event)["aborted"]) for event in said] == [("one two", True)]


async def test_collecting_fails_only_if_all_do(shared: Shared, durability: str) -> None:
    write = agent("last", 'say "{{ outputs.team|selectattr("output")|map(attribute="output")|join }}"', answers=True)
    some = {"sequential": [{"parallel": {"name": "team", "on_error": "collect", "branches": [
        agent("a", "status 400"), agent("b", 'say "b"')]}}, write]}  # fmt: skip
    none = team(agent("a", "status 400"), agent("b", "status 400"), on_error="collect")
    models = {"planned": {"plan": some, "durability": durability}, "none": {"plan": none, "durability": durability}}
    async with shared.process(models) as process:
        assert payload((await process.events(await asked(process)))[-2])["result"] == "b"
        events = await process.events(await process.submit("", model="none"))
    assert error(events)["status"] == 400


async def test_a_retry_tells_its_attempts_and_gives_up_with_their_number(shared: Shared, durability: str) -> None:
    plan = {"sequential": [{"retry": {"max_retries": 2, "delay_s": 0.01, "step": agent("vain", "status 400")}}, LAST]}
    async with shared.process(planned(plan, durability=durability)) as process:
        events = await process.events(await asked(process))
    attempts = [payload(event)["attempt"] for event in events if event.type == "PROGRESS" and "attempt" in payload(event)]
    assert attempts == [1, 1, 2, 2, 3, 3]
    assert error(events)["message"].startswith("after 3 attempts: ")
    assert len(shared.upstream.witness.calls) == 3


TIMEOUTS = {
    "run": (team(agent("a", "hang"), agent("b", "hang")), {"timeout_s": 0.4}),
    "step": (team(agent("a", "hang", timeout_s=0.3)), {}),
    "parallel": (team(agent("a", "hang"), timeout_s=0.3), {}),
    "sequential": ({"sequential": {"timeout_s": 0.3, "steps": [agent("a", "hang"), LAST]}}, {}),
    "inner": ({"sequential": [{"sequential": {"timeout_s": 0.3, "steps": [agent("a", "hang")]}}, LAST]}, {}),
    "waiting": (team({"sequential": {"timeout_s": 0.3, "steps": [{"approval": {"action": "wait"}}]}}, agent("a", 'say ""')), {}),
}


@pytest.mark.parametrize("place", TIMEOUTS)
async def test_what_takes_too_long_ends_as_that(shared: Shared, durability: str, place: str) -> None:
    """A time-out cancels an agent, and the agent's word that it was cancelled was taken for the run's ending."""
    plan, entry = TIMEOUTS[place]
    async with shared.process(planned(plan, durability=durability, **entry)) as process:
        run_id = await asked(process)
        events = await process.events(run_id)
        assert (await process.engine.get(ACME, run_id)).state is RunState.TIMEOUT
    assert error(events)["code"] == "timeout"
    assert all(call.ending in ("cancelled", "completed") for call in shared.upstream.witness.calls)


async def test_large_outputs_and_long_plans_keep_out_of_history(shared: Shared) -> None:
    plan = {"sequential": [agent(f"s{number}", "say 20 words") for number in range(19)] + [LAST]}
    plan["sequential"][0] = {"agent": {"name": "big", "upstream": "demo"}}
    async with shared.process(planned(plan)) as process:
        run_id = await process.submit(f'repeat 100; say "{"CANARY" * 2000}"; end', model="planned")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert payload(events[-2]).get("result") == "end", payload(events[-2])
    assert b"CANARY" not in decoded(history)
    assert len(decoded(history)) < 256 * 1024
    assert len(history.events) < 300, len(history.events)


async def test_a_run_keeps_the_plan_that_it_began_with(shared: Shared) -> None:
    before, after = team(agent("a", 'once hang; say "old"')), team(agent("b", 'say "new"'), agent("c", 'say "new"'))
    async with shared.process(planned(before)) as first:
        run_id = await asked(first)
        await shared.upstream.witness.nth(0)
    async with shared.process(planned(after)) as second:
        events = await second.events(run_id)
    assert {name for name, _ in progress(events)} == {"team", "a", "last"}
    assert payload(events[-2])["result"] == "end"


async def test_two_runs_of_a_plan_share_nothing(shared: Shared, durability: str) -> None:
    plan = {"sequential": [{"parallel": [{"agent": {"name": "a", "upstream": "demo"}}]},
        agent("last", 'say "{{ outputs.a }}"', answers=True)]}  # fmt: skip
    async with shared.process(planned(plan, durability=durability)) as process:
        runs = [await process.submit(f'wait 50ms; say "{number}"', model="planned") for number in range(5)]
        results = [payload((await process.events(run_id))[-2])["result"] for run_id in runs]
    assert results == list("01234")


async def test_a_pause_is_told_when_all_branches_stand_still(shared: Shared, durability: str) -> None:
    shared.upstream.continues = False  # an agent in the middle of its answer goes on to its end
    plan = team(agent("a", 'say "x"; wait 300ms; say "y"'), agent("b", 'say "z"'))
    async with shared.process(planned(plan, durability=durability)) as process:
        run_id = await asked(process)
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id, "lunch")
        before = await process.until(run_id, "WORKFLOW_PAUSED")
        assert (await process.engine.get(ACME, run_id)).state is RunState.PAUSED
        assert all(call.ending == "completed" for call in shared.upstream.witness.calls)
        await process.engine.resume(ACME, run_id)
        events = await process.events(run_id)
    assert "WORKFLOW_PAUSING" in kinds(before)
    assert kinds(events).count("WORKFLOW_PAUSED") == kinds(events).count("WORKFLOW_RESUMED") == 1
    assert len(shared.upstream.witness.calls) == 3
    assert_monotone(events)
    assert payload(events[-2])["result"] == "end"


async def test_a_pause_that_is_taken_back_in_time_is_answered(shared: Shared, durability: str) -> None:
    """Nothing said that the run went on, so it counted as about to pause for ever, and could not be paused again."""
    shared.upstream.continues = False
    plan = team(agent("a", 'say "x"; wait 400ms; say "y"'), agent("b", 'wait 200ms; say "z"'))
    plan["sequential"].insert(1, agent("then", 'say "1"; wait 300ms'))
    async with shared.process(planned(plan, durability=durability)) as process:
        run_id = await asked(process)
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id)
        await process.engine.resume(ACME, run_id)
        await process.until(run_id, "WORKFLOW_RESUMED")
        await process.engine.pause(ACME, run_id)
        await process.until(run_id, "WORKFLOW_PAUSED")
        await process.engine.resume(ACME, run_id)
        events = await process.events(run_id)
    assert [kind for kind in kinds(events) if kind.startswith("WORKFLOW_")] == [
        "WORKFLOW_STARTED",
        "WORKFLOW_PAUSING",
        "WORKFLOW_RESUMED",
        "WORKFLOW_PAUSING",
        "WORKFLOW_PAUSED",
        "WORKFLOW_RESUMED",
        "WORKFLOW_COMPLETED",
    ]


CANCELLED = {
    "branches": team(*(agent(f"a{number}", 'say "x"; hang') for number in range(5))),
    "waiting": team(*(agent(f"a{number}", 'say "x"; hang') for number in range(4)), {"approval": {"action": "wait"}}),
    "nested": team({"parallel": [agent("a0", 'say "x"; hang')]}, *(agent(f"b{number}", 'say "x"; hang') for number in range(4))),
}


@pytest.mark.parametrize("shape", CANCELLED)
async def test_a_cancel_closes_every_branchs_upstream(shared: Shared, durability: str, shape: str) -> None:
    """P14."""
    count = 4 if shape == "waiting" else 5
    async with shared.process(planned(CANCELLED[shape], durability=durability)) as process:
        run_id = await asked(process)
        await process.until(run_id, "LLM_PARTIAL", count)
        began = time.monotonic()
        await process.engine.cancel(ACME, run_id, "enough")
        events = await process.events(run_id)
    assert [call.ending for call in shared.upstream.witness.calls] == ["cancelled"] * count
    assert max(call.ended or 0.0 for call in shared.upstream.witness.calls) - began < 0.25
    assert kinds(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert (payload(events[-2])["reason"], payload(events[-2])["by"]) == ("enough", "key-1")


async def test_a_cancel_between_attempts_is_heard_at_once(shared: Shared, durability: str) -> None:
    """A word that came while the wait renewed its lease was forgotten, until the lease was due again."""
    plan = team({"retry": {"delay_s": 60, "step": agent("a", "status 400")}}, agent("b", 'say "b"'))
    async with shared.process(planned(plan, durability=durability)) as process:
        run_id = await asked(process)
        await process.until(run_id, "AGENT_FAILED")
        began = time.monotonic()
        await process.engine.cancel(ACME, run_id)
        events = await process.events(run_id)
    assert time.monotonic() - began < 1.5
    assert kinds(events)[-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]


async def test_a_long_wait_between_attempts_is_no_lost_worker(shared: Shared) -> None:
    """With no agent at work nobody beat for the step: after a heartbeat Temporal gave it to another attempt, and again."""
    plan = team({"retry": {"delay_s": 4, "max_retries": 1, "jitter": 0, "step": agent("a", 'once status 400; say "a"')}})
    async with shared.process(planned(plan), heartbeat_s=2.0) as process:
        run_id = await asked(process)
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    attempts = [e.activity_task_started_event_attributes.attempt for e in history.events
        if e.HasField("activity_task_started_event_attributes")]  # fmt: skip
    assert set(attempts) == {1}
    assert_monotone([event for event in events if "attempt" not in (event.payload or {})])


async def test_a_budget_is_shared_by_the_branches(shared: Shared, durability: str) -> None:
    chatty = "no limit; rate 100/s; say 300 words"
    plan = team(agent("a", chatty), agent("b", chatty), on_error="collect")
    async with shared.process(planned(plan, durability=durability, budget={"tokens": 100})) as process:
        events = await process.events(await asked(process))
    assert kinds(events).count("BUDGET_THRESHOLD") == 1
    assert kinds(events)[-2:] == ["WORKFLOW_COMPLETED", "STREAM_END"]
    assert payload(events[-2])["finish_reason"] == "length"
    assert payload(events[-2])["usage"]["total_tokens"] <= 100
    assert all(call.ending == "cancelled" for call in shared.upstream.witness.calls)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_lost_worker_does_not_cost_the_branches_that_had_ended(shared: Shared, waits: bool) -> None:
    """P7 in a parallel step: what has ended is not asked again, what has not goes on, and nothing is told twice."""
    beside = [{"sequential": [{"approval": {"action": "wait", "timeout_s": 0.1, "on_timeout": "approve"}}]}] if waits else []
    plan = team(
        agent("done", 'say "1"'), agent("slow", 'say "one "; once hang; say "two"'), agent("mute", 'once hang; say "3"'), *beside
    )
    async with shared.process(planned(plan)) as first:
        run_id = await asked(first)
        await first.until(run_id, "AGENT_COMPLETED")
        await first.until(run_id, "LLM_PARTIAL", 2)
        await first.until(run_id, "PROGRESS", 5)
    async with shared.process(planned(plan)) as second:
        events = await second.events(run_id)
    asked_of = [call.body["messages"][-1]["content"].partition("\n")[2] for call in shared.upstream.witness.calls]
    assert sorted(asked_of.count(text) for text in set(asked_of)) == [1, 1, 2, 2]
    assert asked_of.count('say "1"') == 1
    outputs = {event.agent_id: event.message for event in events if event.type == "LLM_OUTPUT"}
    assert outputs["slow"] == "one two"
    assert_monotone(events)
    assert fractions(events)[-1] == 1.0
    assert payload(events[-2])["result"] == "end"


async def test_a_lost_workflow_is_begun_again_without_repeating_what_is_done(shared: Shared) -> None:
    plan = {
        "sequential": [agent("first", 'say "one"'), *team(agent("a", 'say "a"'), agent("b", 'once hang; say "b"'))["sequential"]]
    }
    async with shared.process(planned(plan)) as first:
        run_id = await asked(first)
        await first.until(run_id, "AGENT_COMPLETED", 2)
        await shared.upstream.witness.nth(2)
    request = await first.log.request(run_id)
    assert request is not None
    client = await Client.connect(shared.temporal.target)
    await client.get_workflow_handle(run_id).terminate()
    again = RunInput(run_id, Plan.model_validate(request.plan).outline(), 5.0, generation=7)
    await client.start_workflow(WORKFLOW, again, id=run_id, task_queue=shared.task_queue)
    async with shared.process(planned(plan)) as second:
        events = await second.events(run_id)
    assert payload(events[-2])["result"] == "end"
    assert len(shared.upstream.witness.calls) == 5  # first, a, b and b again, last
    assert_monotone(events)
    assert fractions(events)[-1] == 1.0


async def test_a_child_models_steps_have_names_of_their_own(shared: Shared, durability: str) -> None:
    child = {"sequential": [agent("plan", 'say "c"'), agent("last", 'say "{{ outputs.plan }}{{ input }}"', answers=True)]}
    either = {
        "conditional": {"if": "outputs.plan == 'p'", "then": {"workflow": {"model": "child", "input": "!", "answers": True}}}
    }
    models = {
        "planned": {"plan": {"sequential": [agent("plan", 'say "p"'), either]}, "durability": durability},
        "child": {"plan": child, "durability": durability},
    }
    async with shared.process(models) as process:
        events = await process.events(await asked(process))
    assert payload(events[-2])["result"] == "c!"
    assert [name for name, status in progress(events) if status == "completed"] == [
        *("plan", "workflow.plan", "workflow.last", "workflow.sequential", "workflow", "conditional")
    ]
    assert fractions(events)[-1] == 1.0


async def test_a_template_cannot_carry_the_prompt_into_history(shared: Shared) -> None:
    plan = {"sequential": [agent("a", 'say "{{ metadata[input] }}"'), LAST]}
    async with shared.process(planned(plan)) as process:
        run_id = await process.submit("CANARY", model="planned")
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert error(events)["code"] == "template_failed"
    assert b"CANARY" not in decoded(history)
    assert types(history)[-1] == "WORKFLOW_EXECUTION_FAILED"


async def test_an_approval_that_is_denied_ends_the_other_branches(shared: Shared, durability: str) -> None:
    plan = team(agent("a", 'say "x"; hang'), {"approval": {"name": "ok", "action": "go"}})
    async with shared.process(planned(plan, durability=durability)) as process:
        run_id = await asked(process)
        await process.until(run_id, "APPROVAL_REQUESTED")
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.decide(ACME, run_id, Decision("ok", approved=False, feedback="no", decided_by="ann"))
        events = await process.events(run_id)
    assert payload(events[-2])["reason"] == "'ok' was not approved by ann: no"
    assert shared.upstream.witness.calls[0].ending == "cancelled"


async def test_a_long_plan_is_continued_as_another_workflow(shared: Shared) -> None:
    """Its history stays short; what has been done stays done, progress goes on, and so does a pause."""
    shared.upstream.continues = False
    plan = {"sequential": [agent(f"s{number}", 'say "x"; wait 100ms') for number in range(5)] + [LAST]}
    async with shared.process(planned(plan)) as process:
        process.engine._temporal._long_history = 5
        run_id = await asked(process)
        for number in (0, 2):
            await shared.upstream.witness.nth(number)
            await process.engine.pause(ACME, run_id)
            await process.until(run_id, "WORKFLOW_PAUSED", number // 2 + 1)
            await process.engine.resume(ACME, run_id)
        events = await process.events(run_id)
        history = await history_of(shared, run_id)
    assert "WORKFLOW_EXECUTION_CONTINUED_AS_NEW" not in types(history)
    assert len(history.events) < 40
    assert kinds(events).count("WORKFLOW_PAUSED") == kinds(events).count("WORKFLOW_RESUMED") == 2
    assert len(shared.upstream.witness.calls) == 6
    assert len(progress(events)) == 12
    assert_monotone(events)
    assert fractions(events)[-1] == 1.0


async def test_a_pause_survives_being_continued(shared: Shared) -> None:
    plan = {"sequential": [agent("a", 'say "x"; wait 200ms'), agent("b", 'say "b"'), LAST]}
    shared.upstream.continues = False
    async with shared.process(planned(plan)) as process:
        process.engine._temporal._long_history = 1
        run_id = await asked(process)
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id, "lunch")
        paused = (await process.until(run_id, "WORKFLOW_PAUSED"))[-1]
        assert (payload(paused)["checkpoint"], payload(paused)["reason"]) == ("b", "lunch")
        client = await Client.connect(shared.temporal.target)
        found = (await client.get_workflow_handle(run_id).describe()).raw_description.workflow_execution_info
        assert found.first_run_id != found.execution.run_id
        await process.engine.resume(ACME, run_id)
        events = await process.events(run_id)
    assert payload(events[-2])["result"] == "end"
