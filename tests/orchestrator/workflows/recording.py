"""Histories of every way a plan's workflow can go, as Temporal recorded them. `test_replay.py` replays the recorded ones.

Record anew what is missing, on embedded backends (a minute):

    python -m tests.orchestrator.workflows.recording

A history that is there is kept: it stands for workflows that are under way when a new version is installed, so a change of the
workflow that does not replay it needs `workflow.patched`. Delete one only when no such workflow can be left.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from orchestrator.embedded import embedded
from orchestrator.engine import Decision
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import Shared

FOLDER = Path(__file__).parent / "histories"

_HIDDEN = {"identity": "worker", "stackTrace": "somewhere"}
_STICKY = re.compile(r"[0-9]+@.+-[0-9a-f]{32}")
"""The name of a worker's own task queue."""

Scenario = Callable[[Shared], Awaitable[str | tuple[str, str]]]
"""Its history is that of a workflow's latest execution, or of one that is named as well."""


async def completed(shared: Shared) -> str:
    async with shared.process() as process:
        return await _finished(shared, await process.submit('say "one two"'))


async def failed(shared: Shared) -> str:
    async with shared.process() as process:
        return await _finished(shared, await process.submit("status 400"))


async def timed_out(shared: Shared) -> str:
    models = {"hasty": {"plan": {"agent": {"upstream": "demo", "timeout_s": 0.2}}}}
    async with shared.process(models) as process:
        return await _finished(shared, await process.submit("hang", model="hasty"))


async def cancelled(shared: Shared) -> str:
    async with shared.process(heartbeat_s=2.0) as process:
        run_id = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        client = await Client.connect(shared.temporal.target)
        await client.get_workflow_handle(run_id).cancel(reason="enough")
        return await _finished(shared, run_id)


async def cancelled_by_its_agent(shared: Shared) -> str:
    async with shared.process() as process:
        run_id = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        await process.engine.cancel(ACME, run_id, "enough")
        return await _finished(shared, run_id)


async def cancelled_while_queued(shared: Shared) -> str:
    async with shared.process(max_agents=1) as process:
        first = await process.submit("hang")
        await shared.upstream.witness.nth(0)
        queued = await process.submit('say "never"')
        await process.engine.cancel(ACME, queued, "enough")
        await process.engine.cancel(ACME, first)
        return await _finished(shared, queued)


async def taken_over(shared: Shared) -> str:
    async with shared.process() as first:
        run_id = await first.submit('say "one "; once hang; say "two"')
        await first.until(run_id, "LLM_PARTIAL")
    async with shared.process():
        return await _finished(shared, run_id)


async def lost(shared: Shared) -> str:
    models = {"fragile": {"plan": {"agent": {"upstream": "demo", "attempts": 1}}}}
    async with shared.process(models, heartbeat_s=0.3) as process:  # less than a tick, so it never beats in time
        return await _finished(shared, await process.submit("hang", model="fragile"))


async def paused(shared: Shared) -> str:
    async with shared.process() as process:
        run_id = await process.submit('say "one "; wait 300ms; say "two"')
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id, "lunch")
        await process.until(run_id, "WORKFLOW_PAUSED")
        await process.engine.resume(ACME, run_id)
        return await _finished(shared, run_id)


TEAM = {
    "parallel": {
        "name": "team",
        "on_error": "collect",
        "branches": [
            {"agent": {"name": "one", "upstream": "demo", "input": '/script\nsay "1"'}},
            {"agent": {"name": "two", "upstream": "demo", "input": "/script\nstatus 400"}},
        ],
    }
}


def _agent(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{script}", **more}}


async def _planned(shared: Shared, plan: Mapping[str, Any], **others: Any) -> str:
    async with shared.process({"planned": {"plan": plan}, **others}) as process:
        return await _finished(shared, await process.submit("", model="planned"))


async def steps(shared: Shared) -> str:
    first, last = _agent("first", 'say "one"'), _agent("last", 'say "two"', answers=True)
    return await _planned(shared, {"sequential": [first, TEAM, last]})


async def branches_that_wait(shared: Shared) -> str:
    """Branches with an approval among them are interpreted in the workflow."""
    waiting = {"sequential": [{"approval": {"name": "ok", "action": "go on"}}, _agent("then", 'say "so"')]}
    plan = {"sequential": [{"parallel": [_agent("beside", 'say "1"'), waiting]}, _agent("last", 'say "2"', answers=True)]}
    return await _decided(shared, plan, approved=True)


async def conditions(shared: Shared) -> str:
    taken = {"conditional": {"if": "outputs.first == 'one'", "then": _agent("yes", 'say "yes"', answers=True)}}
    left = {"conditional": {"if": "outputs.first == 'two'", "then": _agent("no", 'say "no"')}}
    return await _planned(shared, {"sequential": [_agent("first", 'say "one"'), left, taken]})


async def undecidable(shared: Shared) -> str:
    return await _planned(shared, {"conditional": {"if": "1/0", "then": _agent("never", 'say "no"')}})


async def retried(shared: Shared) -> str:
    return await _planned(shared, {"retry": {"max_retries": 1, "delay_s": 0.01, "step": _agent("vain", "status 400")}})


async def approved(shared: Shared) -> str:
    plan = {"sequential": [{"approval": {"name": "ok", "action": "write"}}, _agent("last", 'say "2"')]}
    return await _decided(shared, plan, approved=True)


async def denied(shared: Shared) -> str:
    plan = {"sequential": [{"approval": {"name": "ok", "action": "write"}}, _agent("last", 'say "2"')]}
    return await _decided(shared, plan, approved=False)


async def expired(shared: Shared) -> str:
    plan = {"approval": {"name": "ok", "action": "write", "timeout_s": 0.1, "on_timeout": "approve"}}
    return await _planned(shared, {"sequential": [plan, _agent("last", 'say "2"')]})


async def child_model(shared: Shared) -> str:
    child = {"workflow": {"name": "asked", "model": "other", "input": '/script\nsay "child"', "answers": True}}
    return await _planned(shared, {"sequential": [child]}, other={"plan": {"agent": {"upstream": "demo"}}})


async def paused_between_branches(shared: Shared) -> str:
    plan = {
        "sequential": [
            {"parallel": [_agent("a", 'say "x "; wait 300ms; say "y"'), _agent("b", 'say "z"')]},
            _agent("c", 'say "."', answers=True),
        ]
    }
    async with shared.process({"planned": {"plan": plan}}) as process:
        run_id = await process.submit("", model="planned")
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id, "lunch")
        await process.until(run_id, "WORKFLOW_PAUSED")
        await process.engine.resume(ACME, run_id)
        return await _finished(shared, run_id)


async def cancelled_between_branches(shared: Shared) -> str:
    plan = {"sequential": [{"parallel": [_agent("a", "hang"), _agent("b", "hang")]}, _agent("c", 'say "."', answers=True)]}
    async with shared.process({"planned": {"plan": plan}}) as process:
        run_id = await process.submit("", model="planned")
        await shared.upstream.witness.nth(1)
        await process.engine.cancel(ACME, run_id, "enough")
        return await _finished(shared, run_id)


async def collected(shared: Shared) -> str:
    """Nobody is left to answer."""
    return await _planned(
        shared, {"parallel": {"on_error": "collect", "branches": [_agent("a", "status 400"), _agent("b", "cut")]}}
    )


async def nested(shared: Shared) -> str:
    """A parallel step in a parallel step, beside one that waits, a retry, and a condition within."""
    waiting = {"approval": {"name": "ok", "action": "go on", "timeout_s": 0.1, "on_timeout": "approve"}}
    inner = {"parallel": [_agent("a", 'say "a"'), {"retry": {"delay_s": 0.01, "step": _agent("b", 'once status 500; say "b"')}}]}
    either = {"conditional": {"if": "true", "then": {"sequential": [_agent("c", 'say "c"'), inner]}}}
    return await _planned(shared, {"sequential": [{"parallel": [waiting, either]}, _agent("last", 'say "."', answers=True)]})


async def too_late(shared: Shared) -> str:
    """Containers have times of their own."""
    slow = {"sequential": {"timeout_s": 0.3, "steps": [_agent("a", "hang")]}}
    return await _planned(shared, {"retry": {"max_retries": 1, "delay_s": 0.01, "step": slow}})


async def run_too_late(shared: Shared) -> str:
    plan = {"sequential": [{"approval": {"name": "ok", "action": "write"}}, _agent("last", 'say "2"')]}
    async with shared.process({"planned": {"plan": plan, "timeout_s": 0.5}}) as process:
        return await _finished(shared, await process.submit("", model="planned"))


async def resumed_at_once(shared: Shared) -> str:
    """A pause that was taken back before anything stood still."""
    shared.upstream.continues = False
    plan = {"sequential": [_agent("a", 'say "x"; wait 300ms'), _agent("b", 'say "."', answers=True)]}
    async with shared.process({"planned": {"plan": plan}}) as process:
        run_id = await process.submit("", model="planned")
        await process.until(run_id, "LLM_PARTIAL")
        await process.engine.pause(ACME, run_id, "lunch")
        await process.engine.resume(ACME, run_id)
        return await _finished(shared, run_id)


async def cancelled_while_waiting(shared: Shared) -> str:
    async with shared.process(
        {"planned": {"plan": {"sequential": [{"approval": {"action": "go"}}, _agent("a", "hang")]}}}
    ) as process:
        run_id = await process.submit("", model="planned")
        await process.until(run_id, "APPROVAL_REQUESTED")
        await process.engine.cancel(ACME, run_id, "enough")
        return await _finished(shared, run_id)


async def continued(shared: Shared) -> tuple[str, str]:
    """The first of several executions of a long plan."""
    client = await Client.connect(shared.temporal.target)
    run_id = await continued_to_the_end(shared)
    found = await client.get_workflow_handle(run_id).describe()
    return run_id, found.raw_description.workflow_execution_info.first_run_id


async def continued_to_the_end(shared: Shared) -> str:
    """The last of several executions of a long plan."""
    plan = {"sequential": [_agent("a", 'say "a"'), _agent("b", 'say "b"'), _agent("c", 'say "c"', answers=True)]}
    async with shared.process({"planned": {"plan": plan}}) as process:
        process.engine._temporal._long_history = 5
        return await _finished(shared, await process.submit("", model="planned"))


@workflow.defn(name="Theirs")
class Theirs:
    """A workflow of somebody else's."""

    @workflow.run
    async def run(self, topic: str) -> str:
        if topic == "fail":
            raise ApplicationError("No such topic.", type="no_topic", non_retryable=True)
        if topic == "wait":
            await workflow.wait_condition(lambda: False)
        return f"all about {topic}"


async def external(shared: Shared) -> str:
    return await _external(shared, "trees")


async def external_failed(shared: Shared) -> str:
    return await _external(shared, "fail")


async def external_cancelled(shared: Shared) -> str:
    return await _external(shared, "wait")


async def _external(shared: Shared, topic: str) -> str:
    client = await Client.connect(shared.temporal.target)
    queue = f"{shared.task_queue}-theirs"
    child = {"workflow": {"name": "theirs", "type": "Theirs", "task_queue": queue, "input": topic}}
    plan = {"sequential": [child, _agent("last", 'say "2"', answers=True)]}
    async with (
        Worker(client, task_queue=queue, workflows=[Theirs], workflow_runner=UnsandboxedWorkflowRunner()),
        shared.process({"planned": {"plan": plan}}) as process,
    ):
        run_id = await process.submit("", model="planned")
        if topic == "wait":
            await process.until(run_id, "PROGRESS")
            await process.engine.cancel(ACME, run_id, "enough")
        return await _finished(shared, run_id)


async def _decided(shared: Shared, plan: Mapping[str, Any], *, approved: bool) -> str:
    async with shared.process({"planned": {"plan": plan}}) as process:
        run_id = await process.submit("", model="planned")
        await process.until(run_id, "APPROVAL_REQUESTED")
        await process.engine.decide(ACME, run_id, Decision("ok", approved, "as you like"))
        return await _finished(shared, run_id)


SCENARIOS: Mapping[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        completed,
        failed,
        timed_out,
        cancelled,
        cancelled_by_its_agent,
        cancelled_while_queued,
        taken_over,
        lost,
        paused,
        steps,
        branches_that_wait,
        conditions,
        undecidable,
        retried,
        approved,
        denied,
        expired,
        child_model,
        paused_between_branches,
        cancelled_between_branches,
        collected,
        nested,
        too_late,
        run_too_late,
        resumed_at_once,
        cancelled_while_waiting,
        continued,
        continued_to_the_end,
        external,
        external_failed,
        external_cancelled,
    )
}


async def _finished(shared: Shared, run_id: str) -> str:
    """The run's id, when its workflow has closed."""
    client = await Client.connect(shared.temporal.target)
    async with asyncio.timeout(30.0):
        await asyncio.gather(client.get_workflow_handle(run_id).result(), return_exceptions=True)
    return run_id


async def record(scenario: Scenario, address: TemporalAddress) -> str:
    """The scenario's history as JSON, without the name of the machine and its paths."""
    shared = Shared(address)
    found = await scenario(shared)
    run_id, execution = found if isinstance(found, tuple) else (found, None)
    history = await (await Client.connect(address.target)).get_workflow_handle(run_id, run_id=execution).fetch_history()
    return json.dumps(_anonymous(history.to_json_dict()), indent=1) + "\n"


def _anonymous(value: Any) -> Any:
    match value:
        case dict():
            return {key: _HIDDEN.get(key) or _anonymous(inner) for key, inner in value.items()}
        case list():
            return [_anonymous(inner) for inner in value]
        case str() if _STICKY.fullmatch(value):
            return "worker"
        case _:
            return value


async def main() -> None:
    missing = {name: scenario for name, scenario in SCENARIOS.items() if not (FOLDER / f"{name}.json").exists()}
    with tempfile.TemporaryDirectory() as data:
        async with embedded(Path(data), redis=None, temporal=None, postgres=None, progress=print) as addresses:
            for name, scenario in missing.items():
                (FOLDER / f"{name}.json").write_text(await record(scenario, TemporalAddress(addresses.temporal)))
                sys.stdout.write(f"recorded {name}\n")


if __name__ == "__main__":
    asyncio.run(main())
