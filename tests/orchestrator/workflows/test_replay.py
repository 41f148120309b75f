"""P22: workflows that are under way when a new version is installed go on. Recorded histories replay on today's code."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from orchestrator.workflows.messages import END_RUN, EndInput, RunInput
from orchestrator.workflows.run_workflow import WORKFLOW, RunWorkflow
from orchestrator.workflows.worker import workflow_runner
from tests.orchestrator.workflows.recording import FOLDER, SCENARIOS

RECORDED = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.json"))}


def test_every_way_has_been_recorded() -> None:
    assert set(RECORDED) == set(SCENARIOS)


@pytest.mark.parametrize("name", RECORDED)
async def test_a_recorded_history_replays(name: str) -> None:
    history = WorkflowHistory.from_json(name, RECORDED[name])
    replayer = Replayer(workflows=[RunWorkflow], workflow_runner=workflow_runner())
    await replayer.replay_workflow(history)
    assert len(history.events) < 1000
    assert len(RECORDED[name]) < 256 * 1024


@workflow.defn(name=WORKFLOW, sandboxed=False)
class Hasty:
    @workflow.run
    async def run(self, job: RunInput) -> None:
        await workflow.execute_activity(END_RUN, EndInput(job.run_id, "FAILED"), start_to_close_timeout=timedelta(seconds=1))


async def test_a_workflow_that_decides_otherwise_is_caught() -> None:
    """Saboteur."""
    history = WorkflowHistory.from_json("completed", RECORDED["completed"])
    with pytest.raises(NondeterminismError):
        await Replayer(workflows=[Hasty]).replay_workflow(history)
