"""A chat stream can be cut anywhere and continued with the bytes that the first connection would have received."""

from __future__ import annotations

import json

import pytest

from gateway.wire.chat import ChatEncoder
from orchestrator.events import Entry
from orchestrator.streamlog.log import BEGINNING, Position
from tests.wire.eventstream import read
from tests.wire.logs import LogBook, endings, plain, run

OPTIONS = [
    {},
    {"include_usage": True},
    {"events": True, "stream_ids": True, "include_usage": True},
    {"include_obfuscation": True, "stream_ids": True},
]
GOLDEN = endings() | {
    "failed": LogBook().started().text("a", "b").failed(code="x", message="No.", status=502),
    "cancelled": LogBook().started().text("a").cancelled(),
    "reset": LogBook().started().text("a", "b").reset(1).text("c").completed(),
}
CASES = [
    pytest.param(book, options, id=f"{name}-{'+'.join(options) or 'bare'}")
    for name, book in GOLDEN.items()
    for options in OPTIONS
]


def frames(stream: bytes) -> list[bytes]:
    return [frame + b"\n\n" for frame in stream.split(b"\n\n")[:-1]]


def error_code(stream: bytes) -> str:
    (event,) = read(stream)
    return str(json.loads(event.data)["error"]["code"])


@pytest.mark.parametrize(("book", "options"), CASES)
def test_event_by_event_or_all_at_once_is_the_same(book: LogBook, options: dict[str, bool]) -> None:
    at_once = ChatEncoder(run(**options)).encode(book.entries)
    one_by_one = ChatEncoder(run(**options))
    assert b"".join(one_by_one.encode([entry]) for entry in book.entries) == at_once
    by_threes = ChatEncoder(run(**options))
    assert b"".join(by_threes.encode(book.entries[at : at + 3]) for at in range(0, len(book.entries), 3)) == at_once


@pytest.mark.parametrize(("book", "options"), CASES)
def test_after_any_number_of_chunks(book: LogBook, options: dict[str, bool]) -> None:
    whole = frames(ChatEncoder(run(**options)).encode(book.entries))
    for count in range(len(whole)):
        resumed = ChatEncoder(run(**options), skip_chunks=count)
        assert resumed.encode(book.entries) == b"".join(whole[count:]), count
        assert resumed.ended


@pytest.mark.parametrize(("book", "options"), CASES)
@pytest.mark.parametrize("by_id", [True, False])
def test_after_any_event(book: LogBook, options: dict[str, bool], by_id: bool) -> None:
    first = ChatEncoder(run(**options))
    received = b""
    whole = ChatEncoder(run(**options)).encode(book.entries)
    for entry in book.entries:
        received += first.encode([entry])
        if first.ended:
            break
        resumed = ChatEncoder(run(**options), after=Position(entry.seq, entry.ms if by_id else None))
        assert received + resumed.encode(book.entries) == whole, entry


def test_after_everything_only_done_remains() -> None:
    book = plain()
    assert ChatEncoder(run(), skip_chunks=4).encode(book.entries) == b"data: [DONE]\n\n"
    for entry in book.entries[-2:]:
        ending = book.entries[-2]
        position = Position(entry.seq, ending.ms)  # STREAM_END is appended together with the ending
        assert ChatEncoder(run(), after=position).encode(book.entries) == b"data: [DONE]\n\n"


def test_the_beginning_is_everything() -> None:
    assert ChatEncoder(run(), after=BEGINNING).encode(plain().entries) == ChatEncoder(run()).encode(plain().entries)


def test_more_chunks_than_there_are_is_refused() -> None:
    encoder = ChatEncoder(run(), skip_chunks=5)
    assert error_code(encoder.encode(plain().entries)) == "invalid_position"
    assert encoder.failure is not None
    assert (encoder.failure.status, encoder.failure.param) == (400, "starting_after")


@pytest.mark.parametrize("position", [Position(4, 1), Position(9), Position(8, 1), Position(1000)])
def test_a_position_that_does_not_exist_is_refused(position: Position) -> None:
    assert error_code(ChatEncoder(run(), after=position).encode(plain().entries)) == "position_gone"


def test_a_failed_run_says_so_whatever_was_skipped() -> None:
    book = GOLDEN["failed"]
    assert error_code(ChatEncoder(run(), skip_chunks=99).encode(book.entries)) == "x"


@pytest.mark.parametrize(
    ("encoder", "code"),
    [
        (ChatEncoder(run(), skip_chunks=2), "position_gone"),
        (ChatEncoder(run(), after=Position(3)), "position_gone"),
        (ChatEncoder(run(), after=Position(5)), "position_gone"),
    ],
)
def test_what_the_archive_cannot_continue_exactly_is_refused(encoder: ChatEncoder, code: str) -> None:
    """The archive keeps no deltas, so a chunk count from the live stream would silently swallow the whole answer there."""
    assert error_code(encoder.encode(plain().archived())) == code


def test_the_archive_continues_from_before_the_deltas() -> None:
    archived = plain().archived()
    assert ChatEncoder(run(), after=Position(2)).encode(archived) == ChatEncoder(run()).encode(archived)


def test_a_resumed_live_stream_goes_on() -> None:
    """The client's place is behind, then new text arrives by the fast path."""
    entries: list[Entry] = LogBook().started().text(*"abcdef").output("abcdef").completed().entries
    resumed = ChatEncoder(run(), skip_chunks=3)
    live = b"".join(resumed.encode([entry]) for entry in entries)
    assert live == b"".join(frames(ChatEncoder(run()).encode(entries))[3:])
