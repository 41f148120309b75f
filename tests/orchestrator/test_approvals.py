"""Steps that wait for people, in runs that this process executes itself: asked for, decided once, denied, expired, overheard."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from orchestrator.engine import Decision, Engine, Submission
from orchestrator.errors import InvalidRequest, RunConflict
from orchestrator.events import Event
from orchestrator.runs import RunState
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from tests.orchestrator.engines import ACME, an_engine, script, until
from tests.orchestrator.processes import Shared, payload


def agent(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{text}", **more}}


def model(*steps: Any) -> dict[str, Any]:
    return {"plan": {"sequential": [*steps, agent("last", 'say "done"', answers=True)]}, "durability": "none"}


def asks(**more: Any) -> dict[str, Any]:
    return {"approval": {"action": "pay {{ input }}", **more}}


SHAKY = {"sequential": {"steps": [asks(), agent("shaky", 'once status 400; say "fine"')]}}

MODELS = {
    "asks": model(asks(name="ok", reason="{{ input }} is due")),
    "beside": model({"parallel": {"branches": [asks(name="one"), asks(name="two")]}}),
    "denies": model(asks(name="ok", timeout_s=0.05)),
    "approves": model(asks(name="ok", timeout_s=0.05, on_timeout="approve")),
    "again": model({"retry": {"delay_s": 0.0, "max_retries": 1, "step": SHAKY}}, asks()),
    "tells": model(asks(name="ok"), agent("teller", 'say "{{ outputs.ok.decided_by }}: {{ outputs.ok.feedback }}"')),
    "demo": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
}


async def begin(engine: Engine, name: str) -> str:
    return (await engine.submit(ACME, Submission(name, {"messages": [{"role": "user", "content": "rent"}]}))).id


async def decide(engine: Engine, run_id: str, approval_id: str, approved: bool = True, **more: Any) -> None:
    await engine.decide(ACME, run_id, Decision(approval_id, approved, **more))


async def ending(engine: Engine, run_id: str) -> Event:
    return (await until(engine, run_id, "STREAM_END"))[-2]


async def test_what_is_asked_and_what_came_of_it() -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "asks")
        asked = payload((await until(engine, run_id, "APPROVAL_REQUESTED"))[-1])
        (waiting,) = await engine.approvals(ACME)
        assert asked.pop("expires_at") == waiting.expires_at
        assert asked == {"approval_id": "ok", "step": "ok", "proposed_action": "pay rent", "reason": "rent is due"}
        assert (waiting.run_id, waiting.approval_id, waiting.proposed_action) == (run_id, "ok", "pay rent")
        await decide(engine, run_id, "ok", feedback="at last", decided_by="bob")
        assert (await ending(engine, run_id)).type == "WORKFLOW_COMPLETED"
        assert await engine.approvals(ACME) == []


async def test_later_steps_know_the_decision() -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "tells")
        await until(engine, run_id, "APPROVAL_REQUESTED")
        await decide(engine, run_id, "ok", feedback="at last", decided_by="bob")
        said = [event.message for event in await until(engine, run_id, "STREAM_END") if event.type == "LLM_OUTPUT"]
        assert said[0] == "bob: at last"


async def test_a_denied_run_is_cancelled_by_the_decision() -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "asks")
        await until(engine, run_id, "APPROVAL_REQUESTED")
        await decide(engine, run_id, "ok", approved=False, feedback="too dear", decided_by="bob")
        last = await ending(engine, run_id)
        assert last.type == "WORKFLOW_CANCELLED"
        assert {name: payload(last).get(name) for name in ("reason", "by")} == {
            "reason": "'ok' was not approved by bob: too dear",
            "by": "bob",
        }
        assert (await engine.get(ACME, run_id)).state is RunState.CANCELLED


@pytest.mark.parametrize(("name", "type"), [("denies", "WORKFLOW_CANCELLED"), ("approves", "WORKFLOW_COMPLETED")])
async def test_nobody_decides_in_time(name: str, type: str) -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, name)
        last = await ending(engine, run_id)
        assert last.type == type
        decided = payload((await until(engine, run_id, "APPROVAL_DECISION"))[-1])
        assert (decided["approved"], decided["decided_by"]) == (name == "approves", "timeout")
        with pytest.raises(RunConflict) as late:
            await decide(engine, run_id, "ok")
        assert late.value.code == "approval_decided"
        if type == "WORKFLOW_CANCELLED":
            assert payload(last)["reason"] == "'ok' was not approved by timeout: nobody decided in time"


async def test_of_two_replicas_that_decide_at_once_one_does() -> None:
    store = MemoryStore(time.time)
    async with an_engine(models=MODELS, store=store) as here, an_engine(models=MODELS, store=store) as there:
        for _ in range(20):
            run_id = await begin(here, "asks")
            await until(here, run_id, "APPROVAL_REQUESTED")
            outcomes = await asyncio.gather(
                decide(here, run_id, "ok", True), decide(there, run_id, "ok", False), return_exceptions=True
            )
            (loser,) = [each for each in outcomes if each is not None]
            assert isinstance(loser, RunConflict)
            assert loser.code == "approval_decided"
            wanted = "WORKFLOW_COMPLETED" if outcomes[0] is None else "WORKFLOW_CANCELLED"
            assert (await ending(there, run_id)).type == wanted


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
async def test_several_at_once_in_any_order(order: tuple[str, str]) -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "beside")
        await until(engine, run_id, "APPROVAL_REQUESTED", count=2)
        assert sorted(each.approval_id for each in await engine.approvals(ACME)) == ["one", "two"]
        await decide(engine, run_id, order[0])
        assert [each.approval_id for each in await engine.approvals(ACME)] == [order[1]]
        await decide(engine, run_id, order[1])
        assert (await ending(engine, run_id)).type == "WORKFLOW_COMPLETED"


async def test_one_of_several_that_is_denied_denies_the_run() -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "beside")
        await until(engine, run_id, "APPROVAL_REQUESTED", count=2)
        await decide(engine, run_id, "two", approved=False)
        assert (await ending(engine, run_id)).type == "WORKFLOW_CANCELLED"
        assert await engine.approvals(ACME) == []
        with pytest.raises(RunConflict):
            await decide(engine, run_id, "one")


async def test_a_repetition_asks_again_under_a_name_of_its_own() -> None:
    """The second attempt's approval was named as the plan's second approval is, and deciding one decided both."""
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "again")
        for count, name in enumerate(("approval", "approval~2", "approval-2"), start=1):
            events = await until(engine, run_id, "APPROVAL_REQUESTED", count=count)
            assert payload(events[-1])["approval_id"] == name
            await decide(engine, run_id, name)
        assert (await ending(engine, run_id)).type == "WORKFLOW_COMPLETED"


async def test_a_waiting_run_can_be_cancelled() -> None:
    async with an_engine(models=MODELS) as engine:
        run_id = await begin(engine, "asks")
        await until(engine, run_id, "APPROVAL_REQUESTED")
        await engine.cancel(ACME, run_id, "enough")
        last = await ending(engine, run_id)
        assert (last.type, payload(last)["reason"], payload(last)["by"]) == ("WORKFLOW_CANCELLED", "enough", "key-1")


async def test_a_run_that_is_not_durable_ends_with_its_process() -> None:
    shared = Shared()
    async with shared.process(MODELS) as process:
        run_id = await begin(process.engine, "asks")
        await process.until(run_id, "APPROVAL_REQUESTED")
    async with shared.process(MODELS) as another:
        assert payload((await another.events(run_id))[-2])["error"]["code"] == "server_shutdown"
        assert await another.engine.approvals(ACME) == []
        with pytest.raises(RunConflict) as late:
            await decide(another.engine, run_id, "ok")
        assert late.value.code == "run_ended"


class Deaf(MemoryLog):
    """Orders to other processes are lost on their way."""

    async def publish_control(self, run_id: str, text: str) -> None:
        return


async def test_a_decision_that_nobody_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders go out once. A run whose process missed one waited for its decision until the time was up."""
    monkeypatch.setattr("orchestrator.inline_steps._LOOK_S", 0.05)
    store = MemoryStore(time.time)
    async with an_engine(models=MODELS, store=store) as here, an_engine(models=MODELS, log=Deaf(store)) as there:
        run_id = await begin(here, "asks")
        await until(here, run_id, "APPROVAL_REQUESTED")
        await decide(there, run_id, "ok")
        assert (await ending(here, run_id)).type == "WORKFLOW_COMPLETED"


async def test_a_request_may_ask_for_an_approval_first() -> None:
    async with an_engine(models=MODELS) as engine:
        run = await engine.submit(ACME, script('say "hi"', approve_first=True))
        asked = payload((await until(engine, run.id, "APPROVAL_REQUESTED"))[-1])
        assert (asked["approval_id"], asked["proposed_action"]) == ("begin", "begin")
        assert "AGENT_STARTED" not in [event.type for event in await until(engine, run.id, "APPROVAL_REQUESTED")]
        await decide(engine, run.id, "begin")
        assert payload(await ending(engine, run.id))["result"] == "hi"
        denied = await engine.submit(ACME, script('say "hi"', approve_first=True))
        await until(engine, denied.id, "APPROVAL_REQUESTED")
        await decide(engine, denied.id, "begin", approved=False)
        assert (await ending(engine, denied.id)).type == "WORKFLOW_CANCELLED"


async def test_an_approval_in_front_renames_no_step() -> None:
    """Templates name steps, and steps without a name are numbered."""
    plan = {"sequential": [asks(), agent("begin", 'say "{{ outputs.approval.decided_by }}"', answers=True)]}
    async with an_engine(models={"demo": {"plan": plan, "durability": "none"}}) as engine:
        run = await engine.submit(ACME, script("", approve_first=True))
        for count, name in ((1, "begin-2"), (2, "approval")):
            assert payload((await until(engine, run.id, "APPROVAL_REQUESTED", count=count))[-1])["approval_id"] == name
            await decide(engine, run.id, name, decided_by="bob")
        assert payload(await ending(engine, run.id))["result"] == "bob"


async def test_a_workflow_of_your_own_asks_by_itself() -> None:
    models = {"demo": {"workflow": {"type": "Mine", "task_queue": "q"}}}
    async with an_engine(models=models) as engine:
        with pytest.raises(InvalidRequest):
            await engine.submit(ACME, script("", approve_first=True))
