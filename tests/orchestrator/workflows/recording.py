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

from temporalio.client import Client

from orchestrator.embedded import embedded
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import Shared

FOLDER = Path(__file__).parent / "histories"

_HIDDEN = {"identity": "worker", "stackTrace": "somewhere"}
_STICKY = re.compile(r"[0-9]+@.+-[0-9a-f]{32}")
"""The name of a worker's own task queue."""

Scenario = Callable[[Shared], Awaitable[str]]


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
    run_id = await scenario(shared)
    history = await (await Client.connect(address.target)).get_workflow_handle(run_id).fetch_history()
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
