"""P21: approvals of durable runs outlive every process, and none of their decisions is lost."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine import Decision
from tests.orchestrator.engines import ACME
from tests.orchestrator.processes import Shared, payload
from tests.orchestrator.workflows.test_runs import decoded, history_of

pytestmark = pytest.mark.local

LAST = {"agent": {"upstream": "demo", "input": '/script\nsay "done"'}}
MODELS: dict[str, Any] = {"asks": {"plan": {"sequential": [{"approval": {"name": "ok", "action": "pay"}}, LAST]}}}


async def waiting(shared: Shared) -> str:
    """A run that waits, and whose process has gone."""
    async with shared.process(MODELS) as process:
        run_id = await process.submit("", "asks")
        await process.until(run_id, "APPROVAL_REQUESTED")
        return run_id


@pytest.mark.parametrize(("approved", "type"), [(True, "WORKFLOW_COMPLETED"), (False, "WORKFLOW_CANCELLED")])
async def test_decided_when_another_process_has_come(shared: Shared, approved: bool, type: str) -> None:
    run_id = await waiting(shared)
    async with shared.process(MODELS) as process:
        assert [each.approval_id for each in await process.engine.approvals(ACME)] == ["ok"]
        await process.engine.decide(ACME, run_id, Decision("ok", approved, "as you like", decided_by="bob"))
        last = (await process.events(run_id))[-2]
        assert last.type == type
        if not approved:
            assert payload(last)["reason"] == "'ok' was not approved by bob: as you like"
        history = decoded(await history_of(shared, run_id))
        assert b"bob" in history
        assert b"as you like" not in history  # what people say stands in the run's log, and nowhere else


async def test_a_decision_is_found_whose_teller_was_killed(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision stands in the log before the workflow is told. Between the two is a moment in which a process can be killed;
    the run then waited until the time was up."""
    monkeypatch.setattr("orchestrator.workflows.steps.LOOK_S", 0.2)
    async with shared.process(MODELS) as process:
        run_id = await process.submit("", "asks")
        await process.until(run_id, "APPROVAL_REQUESTED")
        run = await process.engine.get(ACME, run_id)
        told = {"approval_id": "ok", "approved": True, "decided_by": "bob"}
        await process.engine._control._approvals.decide(run, told)
        assert (await process.events(run_id))[-2].type == "WORKFLOW_COMPLETED"
