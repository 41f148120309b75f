"""A log as progress, object by object: what each event comes to, and what a reader who comes back is spared."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.wire.progress import STEP_LOG_CHARS, ProgressEncoder, ProgressFold
from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap
from orchestrator.runs import Run
from orchestrator.streamlog.log import BEGINNING, Position
from tests.wire.eventstream import read
from tests.wire.logs import RUN_ID, LogBook, plain, run

WORKFLOW = {"step_name": "", "step_index": 0, "step_type": ""}
ONLY = {"step_name": "agent", "step_index": 0, "step_type": "agent"}


def asked(query: str | None = None) -> Run:
    return msgspec.structs.replace(run(), query=query, session_id="s")


def fold(book: LogBook, **options: bool) -> list[dict[str, Any]]:
    """The objects, without what all of them have."""
    folding = ProgressFold(asked("What?"), **options)
    objects = []
    for entry in book.entries:
        for told in folding.fold(entry):
            common = {"workflow_id": RUN_ID, "session_id": "s", "timestamp": entry.event.timestamp, "seq": entry.seq}
            assert {name: told.pop(name) for name in common} == common
            objects.append(told)
    return objects


def step(name: str, status: str, progress: float, **more: Any) -> dict[str, Any]:
    return {"step_name": name, "step_index": 0, "step_type": "agent", "status": status, "progress": progress, **more}


def planned() -> LogBook:
    return LogBook().add("WORKFLOW_STARTED", payload={"steps": 2})


def test_a_plain_conversation() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    book = LogBook().started().text("Hello").output("Hello").completed("Hello", usage=usage)
    assert fold(book) == [
        {**WORKFLOW, "status": "started", "progress": 0.0, "input": "What?"},
        {**ONLY, "status": "started", "progress": 0.0},
        {**ONLY, "status": "completed", "progress": 1.0, "output": "Hello"},
        {
            **WORKFLOW,
            "status": "completed",
            "progress": 1.0,
            "result": {"success": True, "output": "Hello", "usage": usage},
        },
    ]


def test_steps_are_told_as_the_plan_tells_them() -> None:
    told = [
        step("a", "started", 0.0, parallel_index=0, parallel_total=2),
        step("a", "completed", 0.25, parallel_index=0, parallel_total=2),
        step("b", "started", 0.25, attempt=1, branch="then", message="Words."),
    ]
    book = planned()
    for payload in told:
        book.add("PROGRESS", payload=payload)
    assert fold(book)[1:] == told


def test_the_answering_agent_of_a_plan_is_not_taken_for_its_only_step() -> None:
    """What an agent says may stand in the log before its step's own word: a watcher was told of a step 0 that was complete."""
    book = planned().add("AGENT_STARTED", agent="agent").output("Hi").add("AGENT_COMPLETED", agent="agent")
    assert fold(book)[1:] == []
    book.add("PROGRESS", payload=step("agent", "completed", 0.5))
    assert fold(book)[1:] == [step("agent", "completed", 0.5, output="Hi")]


def test_an_agent_that_starts_anew_has_started_once() -> None:
    book = LogBook().started().add("AGENT_STARTED", agent="agent")
    assert [each["status"] for each in fold(book)] == ["started", "started"]
    assert [each["step_name"] for each in fold(book)] == ["", "agent"]


def test_the_fraction_never_falls_and_is_one() -> None:
    book = planned()
    for progress in (0.5, 0.25, 7, "much", None):
        book.add("PROGRESS", payload={"step_name": "a", "status": "started", "progress": progress})
    assert [each["progress"] for each in fold(book)] == [0.0, 0.5, 0.5, 1.0, 1.0, 1.0]


def test_endings_without_success() -> None:
    failed = planned().failed(code="x", message="It broke.", status=500)
    assert fold(failed)[1:] == [{**WORKFLOW, "status": "failed", "progress": 0.0, "error": "It broke."}]
    cancelled = planned().cancelled(reason="enough", by="alice")
    assert fold(cancelled)[1:] == [{**WORKFLOW, "status": "cancelled", "progress": 0.0, "message": "enough"}]
    silent = LogBook().started().add("AGENT_FAILED", payload={"error": {"code": "x"}}, agent="agent")
    assert fold(silent)[-1] == {**ONLY, "status": "failed", "progress": 0.0, "error": "The run failed."}


def test_step_logs_are_bounded_and_may_be_left_out() -> None:
    book = LogBook().started().output("x" * (STEP_LOG_CHARS + 1)).completed()
    assert fold(book)[2]["output"] == "x" * STEP_LOG_CHARS
    bare = fold(book, step_logs=False)
    assert [set(each) & {"input", "output"} for each in bare] == [set()] * 4


def encoded(entries: list[Entry | Gap], after: Position = BEGINNING, **options: bool) -> tuple[ProgressEncoder, bytes]:
    encoder = ProgressEncoder(asked(), after, **options)
    return encoder, encoder.encode(entries)


def test_frames_have_names_and_positions() -> None:
    book = plain()
    encoder, stream = encoded([*book.entries])
    assert encoder.ended
    events = read(stream)
    assert [(each.event, each.id) for each in events] == [
        *(("progress", book.entries[place].stream_id) for place in (0, 1, 5, 6)),
        ("done", book.entries[7].stream_id),
    ]
    assert events[-1].data == "[DONE]"
    assert encoder.encode([*book.entries]) == b""


def test_after_every_event_the_rest() -> None:
    book = plain()
    whole = read(encoded([*book.entries])[1])
    for entry in book.entries:
        rest = read(encoded([*book.entries], Position(entry.seq, entry.ms))[1])
        assert rest == ([each for each in whole if int(each.id.partition("-")[2]) > entry.seq] or whole[-1:])


def test_quiet_is_the_beginning_and_the_end() -> None:
    _, stream = encoded([*plain().entries], quiet=True)
    assert [json.loads(each.data)["status"] for each in read(stream)[:-1]] == ["started", "completed"]


@pytest.mark.parametrize(
    ("resumes_at", "after", "breaks"), [(None, 0, True), (3, 0, True), (3, 1, True), (3, 2, False), (3, 5, False)]
)
def test_events_that_are_gone_matter_to_those_who_do_not_have_them(resumes_at: int | None, after: int, breaks: bool) -> None:
    encoder, stream = encoded([Gap(1, 2, resumes_at), *plain().entries[2:]], Position(after))
    if breaks:
        (event,) = read(stream)
        assert event.event == "ERROR_OCCURRED"
        assert json.loads(event.data)["code"] == "stream_gap"
        assert encoder.failure is not None
    else:
        assert read(stream)[-1].data == "[DONE]"
        assert encoder.failure is None


def test_a_stream_that_breaks_says_so() -> None:
    encoder, _ = encoded([*LogBook().started().entries])
    (event,) = read(encoder.interrupt(Failure("going_away", "Come back.", retryable=True)))
    facts = {"scope": "stream", "code": "going_away", "message": "Come back.", "retryable": True}
    assert (event.event, json.loads(event.data), event.id) == ("ERROR_OCCURRED", facts, "")
    assert encoder.ended


def test_silence_and_a_reader_who_has_everything() -> None:
    encoder = ProgressEncoder(asked(), Position(9))
    assert encoder.keepalive(15.0) == b": keepalive\n"
    assert encoder.conclude() == b"event: done\ndata: [DONE]\n\n"
    assert encoder.ended
