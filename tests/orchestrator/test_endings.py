"""Endings: two events that close a log, read back as they were meant."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator import endings
from orchestrator.errors import Failure
from orchestrator.events import ENDINGS, Event, EventType, decode, encode
from orchestrator.runs import Outcome, RunState

AT = "2026-01-01T00:00:00.000Z"
ODD = Failure("upstream_rejected", "words", True, 429, "rate_limit_error", "messages.0", 7.5)

CASES = {
    "completed": (
        endings.completed(AT, text="a", usage={"total_tokens": 1}, finish_reason="length", duration_ms=5),
        Outcome(RunState.COMPLETED),
    ),
    "cancelled": (endings.cancelled(AT, "enough", "key"), Outcome(RunState.CANCELLED, reason="enough")),
    "cancelled without words": (endings.cancelled(AT, None, None), Outcome(RunState.CANCELLED)),
    "failed": (endings.failed(AT, ODD), Outcome(RunState.FAILED, ODD)),
    "timed out": (endings.failed(AT, endings.TIMEOUT, {"total_tokens": 3}), Outcome(RunState.TIMEOUT, endings.TIMEOUT)),
    "lost": (endings.failed(AT, endings.WORKER_LOST), Outcome(RunState.FAILED, endings.WORKER_LOST)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_ending_is_read_back_as_it_was_meant(name: str) -> None:
    (ending, last), meant = CASES[name]
    assert ending.type in ENDINGS
    assert last == Event(EventType.STREAM_END, AT)
    assert endings.outcome(decode(encode(ending))) == meant
    assert endings.outcome(last) is None


def test_what_is_not_known_is_not_said() -> None:
    assert endings.cancelled(AT, None, None)[0].payload == {}
    assert endings.failed(AT, endings.TIMEOUT)[0].payload == {
        "error": {"retryable": False, **msgspec.to_builtins(endings.TIMEOUT)}
    }


@pytest.mark.parametrize("kind", [kind for kind in EventType if kind not in ENDINGS])
def test_nothing_else_is_an_ending(kind: EventType) -> None:
    assert endings.outcome(Event(kind, AT, payload={"error": {}})) is None


@pytest.mark.parametrize(
    "failure", [value for value in vars(endings).values() if isinstance(value, Failure)], ids=lambda f: f.code
)
def test_every_failure_of_ours_tells_what_to_do_and_is_an_error_status(failure: Failure) -> None:
    assert failure.status == 429 if failure.code in endings.BUDGETS else failure.status >= 500
    assert failure.message.endswith(".")
    assert failure.retryable == (failure.status == 503)
    assert endings.failed_state(failure) is (RunState.TIMEOUT if failure is endings.TIMEOUT else RunState.FAILED)
