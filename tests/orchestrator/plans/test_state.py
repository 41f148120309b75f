"""What steps have brought, read from a run's events: the names that templates see."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Event, EventType
from orchestrator.plans.state import Asked, State
from tests.orchestrator.plans.acting import plan

AT = "2026-01-31T12:00:00.000Z"
ASKED = Asked("why?", [{"role": "user", "content": "why?"}], {"user": "Ann"}, {"k": 1}, "s-1")


def said(agent: str, text: str, **payload: Any) -> list[Event]:
    return [
        Event(EventType.AGENT_STARTED, AT, agent),
        Event(EventType.LLM_OUTPUT, AT, agent, text, payload),
        Event(EventType.AGENT_COMPLETED, AT, agent),
    ]


def told(step: str, status: str, **more: Any) -> Event:
    return Event(EventType.PROGRESS, AT, payload={"step_name": step, "status": status, **more})


TEAM = plan(
    "sequential: [{parallel: {name: team, on_error: collect, branches: "
    "[{agent: {name: a, upstream: d}}, {agent: {name: b, upstream: d}}]}}, "
    "{conditional: {name: either, if: 'true', then: {agent: {name: c, upstream: d}}}}, {approval: {name: ok, action: go}}, "
    "{agent: {name: last, upstream: d, answers: true}}]"
)


def outputs(events: list[Event], step: str = "last") -> dict[str, Any]:
    names = State(events).names(TEAM.root, TEAM.step(step), ASKED)
    found: dict[str, Any] = names["outputs"]
    return found


def test_what_a_template_sees() -> None:
    names = State().names(TEAM.root, TEAM.step("last"), ASKED)
    assert names == {
        "input": "why?",
        "messages": ASKED.messages,
        "outputs": {},
        "context": {"user": "Ann"},
        "metadata": {"k": 1},
        "session_id": "s-1",
    }


def test_a_parallel_step_has_brought_what_each_branch_has_and_whose_failed() -> None:
    events = [*said("a", "A"), Event(EventType.AGENT_STARTED, AT, "b"), told("b", "failed", error="It broke.")]
    assert outputs(events) == {
        "a": "A",
        "team": [{"name": "a", "output": "A"}, {"name": "b", "output": "", "error": "It broke."}],
    }


def test_what_has_not_completed_is_not_there() -> None:
    assert outputs(said("a", "A")[:2]) == {}
    assert outputs([*said("c", "half", aborted=True)[:2]]) == {}


def test_a_step_that_is_done_again_has_brought_what_it_brought_last() -> None:
    assert outputs([*said("a", "first"), *said("a", "second")])["a"] == "second"
    recovered = [told("b", "failed", error="It broke."), *said("b", "B"), told("b", "completed")]
    assert outputs(recovered)["team"][1] == {"name": "b", "output": "B"}


def test_a_condition_has_brought_what_the_side_that_it_took_has() -> None:
    assert outputs([told("either", "started", branch="then"), *said("c", "C")])["either"] == "C"
    assert outputs([told("either", "started", branch="none")])["either"] == ""


def test_a_decision_is_an_output() -> None:
    decided = {"step": "ok", "approval_id": "ok", "approved": True, "decided_by": "ann", "feedback": "well"}
    found = outputs([Event(EventType.APPROVAL_DECISION, AT, payload=decided)])["ok"]
    assert (found["approved"], found["decided_by"], found["feedback"]) == (True, "ann", "well")


def test_the_answer_of_an_agent_with_tools_is_all_that_it_said() -> None:
    first = Event(EventType.LLM_OUTPUT, AT, "a", "Let me look. ", {"server_tool_calls": [{"id": "1"}]})
    assert outputs([Event(EventType.AGENT_STARTED, AT, "a"), first, *said("a", "It rains.")[1:]])["a"] == "Let me look. It rains."


def test_a_child_model_sees_its_own_outputs_and_its_own_question() -> None:
    whole = plan(
        "sequential: [{agent: {name: x, upstream: d}}, {workflow: {name: w, model: m, input: '{{ outputs.x }}?', answers: true, "
        "plan: {sequential: [{agent: {name: x, upstream: d}}, {agent: {name: y, upstream: d, answers: true}}]}}}]"
    )
    state = State([*said("x", "outer"), *said("w.x", "inner")])
    names = state.names(whole.root, whole.step("w.y"), ASKED)
    assert (names["input"], names["outputs"], names["context"]) == ("outer?", {"x": "inner"}, {"user": "Ann"})
    assert names["messages"] == [{"role": "user", "content": "outer?"}]
    assert state.result(whole.step("x")) == "outer"
