"""Plans that come with requests: the same rules as those of the configuration, with the path of the first mistake."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest
from orchestrator.planning import PlanInvalid, Planner

AGENT = {"agent": {"upstream": "demo"}}
CATALOG = Catalog({"demo": ModelEntry.model_validate({"plan": AGENT})})
PLANNER = Planner(CATALOG, {"demo"}, {})


def deep(levels: int) -> dict[str, Any]:
    step: dict[str, Any] = AGENT
    for _ in range(levels):
        step = {"sequential": [step]}
    return step


def submission(plan: dict[str, Any] | None, **body: Any) -> Submission:
    return Submission("demo" if plan is None else "mine", {"messages": [], **body}, plan=plan)


def test_a_plan_is_run_instead_of_the_catalogs() -> None:
    resolved = PLANNER.resolve(submission({"sequential": [AGENT, {"workflow": {"model": "demo", "answers": True}}]}))
    assert resolved.entry.plan is not None
    assert [node.name for node in resolved.entry.plan.root.walk()] == ["sequential", "agent", "workflow", "workflow.agent"]
    assert resolved.entry.answers == ("workflow.agent",)
    assert PLANNER.resolve(submission(None)).entry is CATALOG.resolve("demo").entry


@pytest.mark.parametrize(
    ("plan", "param"),
    [
        ({}, ""),
        ({"agent": {}}, "agent.upstream"),
        ({"agent": {"upstream": "nowhere"}}, "agent.upstream"),
        ({"agent": {"upstream": "demo", "tools": ["shell"]}}, "agent.tools.0"),
        ({"agent": {"upstream": "demo", "input": "{{ secrets }}"}}, "agent.input"),
        ({"sequential": [AGENT, {"approval": {}}]}, "sequential.steps.1.approval.action"),
        ({"sequential": [AGENT, AGENT]}, "sequential"),
        ({"workflow": {"model": "nobody"}}, "workflow.model"),
        ({"workflow": {"type": "Secret", "task_queue": "q"}}, "workflow.type"),
        (deep(10_000), ""),
        ({"parallel": [{"parallel": [AGENT] * 100}] * 6}, ""),
    ],
)
def test_a_mistake_is_told_with_its_path(plan: dict[str, Any], param: str) -> None:
    with pytest.raises(PlanInvalid) as caught:
        PLANNER.resolve(submission(plan))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_plan", param)


def test_a_plan_of_several_steps_gives_one_answer() -> None:
    with pytest.raises(InvalidRequest) as caught:
        PLANNER.resolve(submission({"sequential": [AGENT]}, n=2))
    assert caught.value.param == "n"
    PLANNER.resolve(submission(AGENT, n=2))
