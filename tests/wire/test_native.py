"""The native doors' frames: whole ones, for every type, in both framings."""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Draining
from gateway.wire import websocket
from gateway.wire.native import NativeEncoder, Renderings, opening
from orchestrator.events import Entry, EventType, Gap
from tests.wire import eventstream, websocketframes
from tests.wire.eventstream import Read
from tests.wire.logs import RUN_ID, LogBook, endings, plain
from tests.wire.test_sse import NASTY, strings

NONE: frozenset[str] = frozenset()
DOORS = ["sse", "raw", "websocket"]
GOLDEN = endings() | {
    "failed": LogBook().started().text("a").failed(code="x", message="No.", status=502),
    "cancelled": LogBook().started().text("a").cancelled(),
    "controlled": LogBook()
    .started()
    .add("WORKFLOW_PAUSING", None, {"reason": "lunch"})
    .add("WORKFLOW_PAUSED")
    .add("WORKFLOW_RESUMED")
    .add("WORKFLOW_CANCELLING")
    .cancelled(reason="enough"),
}


def encoder(door: str = "sse", types: frozenset[str] = NONE, renderings: Renderings | None = None) -> NativeEncoder:
    renderings = renderings or Renderings()
    if door == "websocket":
        return NativeEncoder(renderings.websocket(RUN_ID, types))
    return NativeEncoder(renderings.sse(RUN_ID, types, raw_names=door == "raw"))


def told(stream: bytes) -> list[Any]:
    """The messages of a WebSocket."""
    frames = websocketframes.read(stream)
    assert {frame.opcode for frame in frames} <= {websocketframes.TEXT}
    return [json.loads(frame.payload) for frame in frames]


def envelope(entry: Entry) -> dict[str, Any]:
    event = entry.event
    facts = {"agent_id": event.agent_id, "message": event.message, "payload": event.payload}
    said = {name: fact for name, fact in facts.items() if fact is not None}
    place = {"workflow_id": RUN_ID, "seq": entry.seq, "stream_id": f"{entry.ms}-{entry.seq}"}
    return {**place, "type": event.type, "timestamp": event.timestamp, **said}


def test_the_frames_of_a_plain_run_byte_by_byte() -> None:
    book = LogBook().started().text("Hi").output("Hi").completed("Hi")
    at = [(entry.stream_id, entry.seq, entry.event.timestamp) for entry in book.entries]
    heads = [f'{{"workflow_id":"{RUN_ID}","seq":{seq},"stream_id":"{id}","type":' for id, seq, _ in at]
    usage = (
        '{"call_id":"call-3","model":"m","upstream":"u","finish_reason":"stop","usage":{"prompt_tokens":3,'
        '"completion_tokens":2,"total_tokens":5,"estimated":false},"duration_ms":12,"ttft_ms":3}'
    )
    whole = [
        ("WORKFLOW_STARTED", f'{heads[0]}"WORKFLOW_STARTED","timestamp":"{at[0][2]}"}}'),
        ("AGENT_STARTED", f'{heads[1]}"AGENT_STARTED","timestamp":"{at[1][2]}","agent_id":"agent"}}'),
        (
            "thread.message.delta",
            f'{heads[2]}"LLM_PARTIAL","timestamp":"{at[2][2]}","agent_id":"agent","message":"Hi","delta":"Hi"}}',
        ),
        (
            "thread.message.completed",
            f'{heads[3]}"LLM_OUTPUT","timestamp":"{at[3][2]}","agent_id":"agent","message":"Hi","payload":{usage},'
            f'"response":"Hi","metadata":{usage}}}',
        ),
        ("AGENT_COMPLETED", f'{heads[4]}"AGENT_COMPLETED","timestamp":"{at[4][2]}","agent_id":"agent"}}'),
        (
            "WORKFLOW_COMPLETED",
            f'{heads[5]}"WORKFLOW_COMPLETED","timestamp":"{at[5][2]}","payload":{{"result":"Hi","duration_ms":20}}}}',
        ),
        ("done", "[DONE]"),
    ]
    expected = "".join(f"id: {id}\nevent: {name}\ndata: {data}\n\n" for (id, _, _), (name, data) in zip(at, whole, strict=True))
    assert encoder().encode(book.entries).decode() == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_server_sent_events_have_the_envelope_and_a_name(name: str) -> None:
    entries = GOLDEN[name].entries
    names = {
        "LLM_PARTIAL": "thread.message.delta",
        "LLM_OUTPUT": "thread.message.completed",
        "WORKFLOW_PAUSING": "workflow.pausing",
        "WORKFLOW_PAUSED": "workflow.paused",
        "WORKFLOW_RESUMED": "workflow.resumed",
        "WORKFLOW_CANCELLING": "workflow.cancelling",
        "WORKFLOW_CANCELLED": "workflow.cancelled",
        "STREAM_END": "done",
    }
    got = eventstream.read(encoder().encode(entries))
    assert [(each.id, each.event) for each in got] == [
        (entry.stream_id, names.get(entry.event.type, entry.event.type)) for entry in entries
    ]
    assert got[-1].data == "[DONE]"
    for read, entry in zip(got[:-1], entries[:-1], strict=True):
        more: dict[str, Any] = {}
        if entry.event.type == "LLM_PARTIAL":
            more = {"delta": entry.event.message or ""}
        if entry.event.type == "LLM_OUTPUT":
            more = {"response": entry.event.message or "", "metadata": entry.event.payload}
        assert json.loads(read.data) == envelope(entry) | more


@pytest.mark.parametrize("name", GOLDEN)
def test_raw_names_change_the_names_and_nothing_else(name: str) -> None:
    entries = GOLDEN[name].entries
    usual, raw = (eventstream.read(encoder(door).encode(entries)) for door in ("sse", "raw"))
    assert [each.event for each in raw] == [entry.event.type for entry in entries]
    assert [(each.id, each.data) for each in raw] == [(each.id, each.data) for each in usual]


@pytest.mark.parametrize("name", GOLDEN)
def test_a_websocket_has_one_message_per_event(name: str) -> None:
    entries = GOLDEN[name].entries
    assert told(encoder("websocket").encode(entries)) == [envelope(entry) for entry in entries]


@pytest.mark.parametrize("door", DOORS)
def test_no_event_is_ever_named_error(door: str) -> None:
    """`EventSource` fires `error` for its own troubles, so a page could not tell the two apart."""
    of_all_types = LogBook()
    for kind in EventType:
        if kind not in ("STREAM_END", "STREAM_GAP"):
            of_all_types.add(kind)
    stream = encoder(door).encode([*of_all_types.entries, Gap(1, None, None)]) + encoder(door).interrupt(Draining().failure())
    if door != "websocket":
        assert "error" not in {each.event.lower() for each in eventstream.read(stream)}


# Beside the log


@pytest.mark.parametrize("door", DOORS)
def test_a_gap_is_told_without_a_position_and_the_stream_goes_on(door: str) -> None:
    entries = plain().entries
    gap = {"missing_from": 2, "missing_to": 4, "resumes_at": 5}
    said = {"workflow_id": RUN_ID, "type": "STREAM_GAP", "payload": gap}
    it = encoder(door)
    stream = it.encode([entries[0], Gap(2, 4, 5), *entries[4:]])
    assert (it.ended, it.failure) == (True, None)
    if door == "websocket":
        assert told(stream)[1] == said
        assert [each.get("seq") for each in told(stream)] == [1, None, 5, 6, 7, 8]
    else:
        events = eventstream.read(stream)
        assert events[1] == Read(json.dumps(said, separators=(",", ":")), "STREAM_GAP", entries[0].stream_id)
        assert len(events) == 6
        assert b"id:" not in stream.split(b"\n\n")[1]


@pytest.mark.parametrize("door", DOORS)
def test_a_gap_with_nothing_behind_it_ends_the_stream_without_pretending(door: str) -> None:
    it = encoder(door)
    stream = it.encode([Gap(3, None, None)])
    assert it.ended
    assert it.failure is not None
    assert it.failure.code == "stream_gap"
    assert b"[DONE]" not in stream
    assert b'{"missing_from":3,"missing_to":null,"resumes_at":null}' in stream


def test_a_reader_who_had_everything_is_told_the_end_again() -> None:
    for door, frame in {
        "sse": b"event: done\ndata: [DONE]\n\n",
        "raw": b"event: STREAM_END\ndata: [DONE]\n\n",
        "websocket": websocket.text(b'{"workflow_id":"%b","type":"STREAM_END"}' % RUN_ID.encode()),
    }.items():
        it = encoder(door)
        assert it.conclude() == frame
        assert (it.ended, it.failure) == (True, None)


def test_a_stream_that_breaks_off_says_so_and_does_not_end_in_done() -> None:
    failure = Draining().failure()
    it = encoder()
    (event,) = eventstream.read(it.interrupt(failure))
    assert (event.event, event.id) == ("ERROR_OCCURRED", "")
    assert json.loads(event.data) == {
        "workflow_id": RUN_ID,
        "type": "ERROR_OCCURRED",
        "message": failure.message,
        "payload": {"scope": "stream", "severity": "error", "code": "draining", "retryable": True},
    }
    assert (it.ended, it.failure) == (True, failure)
    socket = encoder("websocket")
    assert socket.interrupt(failure) == b""
    assert (socket.ended, socket.failure) == (True, failure)


def test_silence_is_filled_with_comments_on_event_streams_only() -> None:
    assert encoder().keepalive(10) == b": keepalive\n"
    assert encoder("websocket").keepalive(10) == b""
    assert opening(2117) == b": connected\nretry: 2117\n"
    events = eventstream.read(opening(2117) + encoder().keepalive(10) + encoder().encode(plain().entries))
    assert [each.event for each in events][:2] == ["WORKFLOW_STARTED", "AGENT_STARTED"]


# Injection


@given(st.lists(st.tuples(strings, strings, strings), max_size=4), st.sampled_from(DOORS))
def test_whatever_is_in_the_strings_readers_get_exactly_the_events(texts: list[tuple[str, str, str]], door: str) -> None:
    book = LogBook()
    for agent, message, value in texts:
        book.add("LLM_PARTIAL", message, {"value": value, value: 1}, agent)
        book.add("LLM_OUTPUT", message, {"value": value}, agent)
    book.completed()
    stream = encoder(door).encode(book.entries)
    if door == "websocket":
        assert told(stream) == [envelope(entry) for entry in book.entries]
        return
    for splitlines in (False, True):
        got = eventstream.read(stream, splitlines=splitlines)
        assert [each.id for each in got] == [entry.stream_id for entry in book.entries]
        for read, entry in zip(got[:-1], book.entries[:-1], strict=True):
            assert envelope(entry).items() <= json.loads(read.data).items()


@pytest.mark.parametrize("nasty", NASTY)
def test_not_even_a_type_can_end_its_line(nasty: str) -> None:
    book = LogBook().add(f"X_{nasty}EVIL", "hi")
    (only,) = eventstream.read(encoder().encode(book.entries), splitlines=True)
    assert json.loads(only.data) == envelope(book.entries[0])


def test_a_line_of_a_megabyte_is_a_line() -> None:
    book = LogBook().text("\n\u2028x" * 300_000).completed()
    assert len(eventstream.read(encoder().encode(book.entries), splitlines=True)) == 4
    assert told(encoder("websocket").encode(book.entries)) == [envelope(entry) for entry in book.entries]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
def test_messages_of_all_lengths(size: int) -> None:
    payload = b"x" * size
    assert websocketframes.read(websocket.text(payload)) == [(websocketframes.TEXT, payload)]


@pytest.mark.parametrize("size", [0, 1, 125])
def test_a_pong_echoes_its_ping(size: int) -> None:
    assert websocketframes.read(websocket.pong(b"x" * size)) == [(websocketframes.PONG, b"x" * size)]


# Sharing


def in_batches(it: NativeEncoder, batches: Sequence[Sequence[Entry]]) -> bytes:
    return b"".join(it.encode(batch) for batch in batches)


@given(st.data())
def test_readers_who_share_a_rendering_see_what_they_would_see_alone(data: st.DataObject) -> None:
    entries = GOLDEN[data.draw(st.sampled_from(sorted(GOLDEN)))].entries
    door = data.draw(st.sampled_from(DOORS))
    types = data.draw(st.sampled_from([NONE, frozenset({"LLM_OUTPUT"}), frozenset({"LLM_PARTIAL", "X_MINE"})]))
    alone = encoder(door, types).encode(entries)
    renderings = Renderings()
    readers = [encoder(door, types, renderings) for _ in range(3)]
    cuts = [sorted(data.draw(st.sets(st.integers(1, len(entries) - 1)))) for _ in readers]
    waiting = [[entries[start:end] for start, end in zip([0, *cut], [*cut, len(entries)], strict=True)] for cut in cuts]
    got = [b"", b"", b""]
    while any(waiting):
        turn = data.draw(st.sampled_from([number for number, batches in enumerate(waiting) if batches]))
        got[turn] += readers[turn].encode(waiting[turn].pop(0))
    assert got == [alone] * 3


def test_what_one_reader_was_given_the_next_is_given_without_being_made_again() -> None:
    """Counted, not timed: of a run that a thousand watch, every batch is encoded once."""
    renderings, entries = Renderings(), plain().entries
    readers = [encoder(renderings=renderings) for _ in range(3)]
    rendering = renderings.sse(RUN_ID)
    for batch in (entries[:3], entries[3:]):
        made = rendering.frames(batch)
        assert all(reader.encode(list(batch)) == made for reader in readers)
        assert rendering.frames(list(batch)) is made


def test_a_rendering_lasts_as_long_as_its_readers() -> None:
    renderings = Renderings()
    reader = encoder(renderings=renderings)
    rendering = weakref.ref(renderings.sse(RUN_ID))
    assert rendering() is renderings.sse(RUN_ID)
    assert renderings.sse(RUN_ID, frozenset({"WARNING"})) is not rendering()
    del reader
    assert rendering() is None
