"""What a log gives to say again, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.cache import recording as module
from orchestrator.cache.recording import Recording, recording
from orchestrator.events import Entry, Event, encode, restamped
from orchestrator.runs import Run, RunState

AT = "2026-01-01T00:00:00.000Z"
RUN = Run(id=f"task-{1:032x}", tenant="acme", model="m", answers=("agent",), created_ms=1, state=RunState.COMPLETED)
ENDING = {"result": "ab", "usage": {"total_tokens": 3}, "finish_reason": "stop", "duration_ms": 9}


def output(**payload: Any) -> Event:
    return Event("LLM_OUTPUT", AT, "agent", "ab", {"finish_reason": "stop", **payload})


SAID = [
    Event("AGENT_STARTED", AT, "agent"),
    Event("LLM_PARTIAL", AT, "agent", "a"),
    Event("LLM_PARTIAL", AT, "agent", "b"),
    output(),
    Event("AGENT_COMPLETED", AT, "agent"),
]


def log(*said: Event, ending: dict[str, Any] | None = None, ends_as: str = "WORKFLOW_COMPLETED") -> list[Entry]:
    events = [
        Event("WORKFLOW_STARTED", AT, payload={"model": "m"}),
        *said,
        Event(ends_as, AT, payload=ENDING if ending is None else ending),
        Event("STREAM_END", AT),
    ]
    return [Entry(seq, 5, encode(event)) for seq, event in enumerate(events, 1)]


def found(entries: list[Entry], run: Run = RUN, side_effects: bool = False) -> Recording | None:
    return recording(run, entries, side_effects=side_effects)


def test_what_was_said_is_said_again() -> None:
    assert found(log(*SAID)) == Recording(RUN.id, [encode(event) for event in SAID], ENDING)


def test_what_was_done_to_the_run_is_not() -> None:
    done = [
        Event(kind, AT, payload={"reason": "later"})
        for kind in (
            "WORKFLOW_PAUSING",
            "WORKFLOW_PAUSED",
            "WORKFLOW_RESUMED",
            "WORKFLOW_CANCELLING",
            "AGENT_RETRYING",
            "BUDGET_THRESHOLD",
        )
    ]
    assert found(log(*SAID[:2], *done, *SAID[2:])) == found(log(*SAID))


@pytest.mark.parametrize("kind", ["TOOL_INVOKED", "TOOL_OBSERVATION", "TOOL_ERROR", "APPROVAL_REQUESTED", "APPROVAL_DECISION"])
def test_what_had_effects_only_where_that_is_allowed(kind: str) -> None:
    entries = log(Event(kind, AT, "agent"), *SAID)
    assert found(entries) is None
    allowed = found(entries, side_effects=True)
    assert allowed is not None
    assert allowed.bodies[0] == encode(Event(kind, AT, "agent"))


@pytest.mark.parametrize("reason", ["length", "tool_calls", "function_call", "content_filter", None])
def test_an_answer_that_did_not_stop_by_itself_is_none(reason: str | None) -> None:
    assert found(log(*SAID, ending={**ENDING, "finish_reason": reason})) is None


def test_each_of_several_choices_has_to_have_stopped() -> None:
    def choices(*reasons: str) -> list[Entry]:
        return log(*SAID[:3], output(choices=[{"index": n, "finish_reason": reason} for n, reason in enumerate(reasons)]))

    assert found(choices("stop", "stop")) is not None
    assert found(choices("stop", "length")) is None


def test_how_another_agents_call_ended_is_its_own_affair() -> None:
    other = Event("LLM_OUTPUT", AT, "researcher", "…", {"choices": [{"finish_reason": "length"}]})
    assert found(log(other, *SAID)) is not None


def test_text_that_was_unsaid_cannot_be_said_again() -> None:
    assert found(log(*SAID[:2], Event("OUTPUT_RESET", AT, "agent", payload={"offset": 0}), *SAID[2:]), side_effects=True) is None


@pytest.mark.parametrize(
    "entries",
    [
        [],
        log(*SAID)[:-1],
        log(*SAID)[:-2],
        log(*SAID)[1:],
        log(*SAID)[:2] + log(*SAID)[3:],
        log(*SAID, ends_as="WORKFLOW_FAILED"),
        log(*SAID, ends_as="WORKFLOW_CANCELLED"),
        log(*SAID, ending={}),
    ],
)
def test_a_log_that_is_not_whole_or_ended_otherwise(entries: list[Entry]) -> None:
    assert found(entries) is None


@pytest.mark.parametrize("state", [state for state in RunState if state is not RunState.COMPLETED])
def test_a_run_that_is_not_completed(state: RunState) -> None:
    run = Run(id=RUN.id, tenant="acme", model="m", answers=("agent",), created_ms=1, state=state)
    assert found(log(*SAID), run) is None


def test_a_very_long_one() -> None:
    piece = Event("LLM_PARTIAL", AT, "agent", "x" * (module.MAX_BYTES // 4))
    assert found(log(*[piece] * 3)) is not None
    assert found(log(*[piece] * 4)) is None


@pytest.mark.parametrize("message", [None, '"timestamp":"2020"', 'a","timestamp":"b'])
@pytest.mark.parametrize("at", [AT, "2026-01-01T00:00:00.000000001+01:00"])
def test_the_same_event_at_another_time(message: str | None, at: str) -> None:
    then = "2030-12-31T23:59:59.999Z"
    event = Event("X_OWN", at, "agent", message, {"timestamp": "kept"})
    assert restamped(encode(event), then) == encode(Event("X_OWN", then, "agent", message, {"timestamp": "kept"}))
