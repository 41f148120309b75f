"""Parsers of streams: bytes come in pieces, and where they are cut must not matter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable, Sequence

import msgspec

from gateway.wire.chat import ChatEncoder
from gateway.wire.completion import CompletionFold
from gateway.wire.feed import FeedEncoder
from gateway.wire.native import NativeEncoder, Renderings
from gateway.wire.sse_decoder import Decoder, EventTooLong, ServerEvent
from headgate.errors import BadAnswer
from headgate.events import of_message, of_server_event
from orchestrator.events import Entry, Event, EventType, encode, is_event_type
from orchestrator.http.feed import FeedReader
from orchestrator.nesting import nested_deeper
from orchestrator.publishing import _RFC3339, MAX_EVENT_BYTES
from orchestrator.rpc.translate import Updates
from orchestrator.upstreams.chunks import AnswerReader
from orchestrator.upstreams.eventstream import EventStreamReader
from orchestrator.upstreams.rejections import Scrubber, rejection, reported, retry_after
from orchestrator.upstreams.upstream import Delta, UpstreamError
from tests.security.fuzz.target import Target
from tests.wire.eventstream import read
from tests.wire.logs import RUN_ID, endings, run

_SCRUB = Scrubber("http://10.1.2.3:9/v1", ["sk-secret"])

SSE_SEEDS = [
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n',
    b"\xef\xbb\xbf: hello\r\n\r\nid: 1\revent: a\rdata: one\ndata:two\n\nretry: 200\ndata\n\nid: \0\ndata: x\n\ndata: cut",
    "data: naïve 日本\u2028\u2029\x85🙂\n\n: c\ndata:\n\n\n\n\n".encode(),
]
SSE_WORDS = [b"data: ", b"data:", b"data", b"event: ", b"id: ", b"retry: ", b": ", b"\n\n", b"\r\r", b"\r\n\r\n", b"[DONE]"]


def pieces_of(data: bytes) -> Sequence[bytes]:
    """Cut at places that the bytes themselves name."""
    out, at = [], 0
    while at < len(data):
        size = 1 + data[at] % 7
        out.append(data[at : at + size])
        at += size
    return out


def upstream_event_stream(data: bytes) -> Hashable:
    """An upstream's event stream reads the same whole, in pieces and byte by byte, and as an independent reader reads it."""
    whole = EventStreamReader(1 << 16)
    events = whole.feed(data)
    for cut in (pieces_of(data), [bytes([byte]) for byte in data[:1000]]):
        reader, got = EventStreamReader(1 << 16), []
        for piece in cut:
            got += reader.feed(piece)
        assert got == (events if b"".join(cut) == data else events[: len(got)]), (got, events)
    try:
        theirs = [each.data.encode() for each in read(data + b"\n")]
    except UnicodeDecodeError:
        return (len(events), "no text")
    # Ended by one more line, theirs may dispatch what is a rest to ours.
    assert theirs[: len(events)] == events, (theirs, events)
    return (len(events), len(theirs), b"\r" in data)


def bounded_event_stream(data: bytes) -> Hashable:
    """An event that is longer than allowed is a failure, nothing follows it, and no more than the bound is kept."""
    reader = EventStreamReader(64)
    for piece in pieces_of(data):
        events = reader.feed(piece)
        assert all(len(event) <= 64 for event in events)
        assert len(reader.rest()) <= 64 + 8
        assert reader.failure is None or reader.feed(b"data: x\n\n") == []
    return reader.failure is None


def upstream_answer(data: bytes) -> Hashable:
    """Whatever an upstream streams becomes pieces that can be stored, or an UpstreamError; the same however it arrives."""

    def outcome(batches: Sequence[Sequence[bytes]]) -> tuple[list[object], str | None]:
        answer, got = AnswerReader(lambda sent: reported(sent, _SCRUB)), []
        try:
            for batch in batches:
                if not (answer.done or answer.failure):
                    got += answer.read(batch)
            if not (answer.done or answer.failure):
                got += answer.end(data.rpartition(b"\n\n")[2])
        except UpstreamError as error:
            return got, type(error).__name__
        return got, None if answer.failure is None else type(answer.failure).__name__

    events = EventStreamReader(1 << 20).feed(data)
    got, failure = outcome([events])
    assert outcome([[event] for event in events]) == (got, failure)
    for piece in got:
        assert not nested_deeper(msgspec.to_builtins(piece), 140)
        msgspec.json.decode(msgspec.json.encode(piece))
    return (failure, frozenset(type(piece).__name__ for piece in got), any(isinstance(p, Delta) and p.tool_calls for p in got))


def upstream_whole_answer(data: bytes) -> Hashable:
    """A whole answer that is none is an UpstreamError, and an error's body always becomes an error without our secrets."""
    said = rejection(400 + len(data) % 200, data, {"Retry-After": data.decode("latin-1")[:50]}, _SCRUB, 0.0)
    told = f"{said.message} {said.code} {said.type} {said.param}"
    assert "sk-secret" not in told.lower()
    assert not re.search(r"(?<![\d.])10\.1\.2\.3(?![\d.])", told)
    msgspec.json.encode(said.failure())
    wait = retry_after({"retry-after-ms": data.decode("latin-1")[:50]}, 0.0)
    assert wait is None or 0 <= wait <= 86_400
    try:
        return len(AnswerReader(lambda sent: reported(sent, _SCRUB)).read_whole(data))
    except UpstreamError as error:
        return type(error).__name__


def our_decoder(data: bytes) -> Hashable:
    """Our own reader of event streams reads the same however bytes are cut, and as an independent reader reads them."""
    whole = Decoder()
    events = whole.feed(data)
    for cut in (pieces_of(data), [bytes([byte]) for byte in data[:1000]]):
        decoder = Decoder()
        got = [event for piece in cut for event in decoder.feed(piece)]
        assert got == (events if b"".join(cut) == data else events[: len(got)])
    try:
        theirs = [ServerEvent(each.data, each.event or "message", each.id) for each in read(data + b"\n")]
    except UnicodeDecodeError:
        return "no text"
    assert theirs[: len(events)] == events, (theirs, events)
    try:
        Decoder(max_event_bytes=64).feed(data)
    except EventTooLong:
        return (len(events), "long")
    return (len(events), whole.retry_ms is not None)


def client_event(data: bytes) -> Hashable:
    """The Python client takes whatever a server sends for an event, for no event, or for a bad answer."""
    text = data.decode("utf-8", "replace")
    name, _, place = text.partition("|")
    outcomes: list[Hashable] = []
    reads: list[Callable[[], object]] = [
        lambda: of_message(data),
        lambda: of_message(text),
        lambda: of_server_event(ServerEvent("[DONE]", "done", text), "task-1", ""),
        lambda: of_server_event(ServerEvent(name, "x", place), "task-1", "1-1"),
    ]
    for attempt in reads:
        try:
            outcomes.append(type(attempt()).__name__)
        except BadAnswer:
            outcomes.append("bad")
    return tuple(outcomes)


def internal_feed(data: bytes) -> Hashable:
    """A feed between processes is read the same however it was cut, or refused with a ValueError."""

    def outcome(cut: Sequence[bytes]) -> object:
        reader = FeedReader()
        try:
            items = [item for piece in cut for item in reader.feed(piece)]
        except ValueError:
            return None
        return items, reader.ended

    whole = outcome([data])
    assert outcome(pieces_of(data)) == whole
    return whole is None


def any_log(data: bytes) -> Hashable:
    """A log of any events becomes, at every door, a stream that an independent reader finds well-formed and ended truly."""
    try:
        listed = msgspec.json.decode(data, type=list[Event])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    listed = [event for event in listed if _publishable(event)][:50]
    bodies = [encode(event) for event in [*listed, Event(EventType.STREAM_END, "2026-01-01T00:00:00.000Z")]]
    entries = [Entry(seq, seq, body) for seq, body in enumerate(bodies, 1) if len(body) <= MAX_EVENT_BYTES]
    chat = ChatEncoder(run(events=True, stream_ids=True, include_usage=True))
    stream = chat.encode(entries)
    frames = read(stream)
    assert read(stream, splitlines=True) == frames
    assert (frames[-1].data == "[DONE]") is (chat.failure is None)
    assert all(isinstance(json.loads(frame.data), dict) for frame in frames if frame.data != "[DONE]")
    whole = CompletionFold(run())
    whole.feed(entries)
    assert whole.ended
    if whole.failure is None:
        json.loads(whole.body())
    native = read(NativeEncoder(Renderings().sse(RUN_ID)).encode(entries))
    assert [frame.id for frame in native] == [entry.stream_id for entry in entries]
    updates = Updates(RUN_ID)
    assert all(updates.encode(entry) for entry in entries)
    assert FeedReader().feed(FeedEncoder().encode(entries)) == entries
    return (chat.failure.code if chat.failure else None, whole.failure is None, len(frames) > 3)


def _publishable(event: Event) -> bool:
    known = is_event_type(event.type) and event.type not in (EventType.STREAM_END, EventType.STREAM_GAP)
    return known and _RFC3339.fullmatch(event.timestamp) is not None and not nested_deeper(event.payload)


def _logs() -> list[bytes]:
    return [b"[" + b",".join(entry.body for entry in book.entries) + b"]" for book in endings().values()]


_CHUNK_WORDS = [
    b'"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]',
    b'"reasoning_content":"x"',
    b'"refusal":"n"',
    b'"finish_reason":"stop"',
    b'"usage":{"prompt_tokens":1}',
    b'"error":{"message":"m","code":429}',
    b'"logprobs":{"content":[]}',
    b'data: {"choices":[]}\n\n',
    b"data: [DONE]\n\n",
    b'"index":',
    b'"choice":',
    b'"offset":',
    b'"payload":{',
    b'"agent_id":"agent"',
]

TARGETS = {
    "upstream event stream": Target(upstream_event_stream, SSE_SEEDS, SSE_WORDS),
    "bounded event stream": Target(bounded_event_stream, SSE_SEEDS, SSE_WORDS),
    "upstream answer": Target(
        upstream_answer,
        [
            *SSE_SEEDS,
            b'data: {"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"id":"c","function":{"name":"f","argum'
            b'ents":"{"}}]}}]}\n\n'
            b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":3}}\n\n',
            b'data: {"error":{"message":"no","type":"x","code":"rate_limit_exceeded"}}\n\n',
            b'data: {"choices":[{"message":{"content":[{"text":"a","thinking":[{"text":"b"}]}]}}]}\n\n',
        ],
        [*SSE_WORDS, *_CHUNK_WORDS],
    ),
    "upstream whole answer": Target(
        upstream_whole_answer,
        [b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}', b'{"error":{"message":"sk-secret at 10.1.2.3:9"}}'],
        [*_CHUNK_WORDS, b"sk-secret", b"10.1.2.3", b'{"detail":[{"msg":"x"}]}', b'"code":"context_length_exceeded"'],
    ),
    "our decoder": Target(our_decoder, SSE_SEEDS, SSE_WORDS),
    "client event": Target(
        client_event,
        [
            b'{"workflow_id":"t","type":"X_A","seq":1,"stream_id":"1-1","payload":{}}',
            b'{"op":"cancel","ok":true}',
            b"1763640000000-17",
        ],
        [b"[DONE]|1-1", b"99999999999999-1"],
    ),
    "internal feed": Target(
        internal_feed,
        [
            b': \nid: 1-1\ndata: {"type":"X_A","timestamp":"t"}\n\n'
            b'event: gap\ndata: {"missing_from":1,"missing_to":2,"resumes_at":3}\n\n'
        ],
        [b"id: ", b"event: end\n", b"data: ", b"\n\n"],
    ),
    "any log": Target(any_log, _logs(), _CHUNK_WORDS),
}
