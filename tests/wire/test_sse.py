"""The event stream, written and read. Whatever a client or an upstream puts into a string, a reader gets back those events."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import sse
from gateway.wire.chat import ChatEncoder
from gateway.wire.sse_decoder import Decoder, EventTooLong, ServerEvent
from tests.wire.eventstream import Read, read
from tests.wire.logs import LogBook, endings, run

NASTY = ["\n", "\r", "\r\n", "\n\n", "\0", "\u2028", "\u2029", "\x85", "\ufeff", "\x0b\x0c\x1c\x1d\x1e"]
NASTY += ["data: x\n\n", "event: x\n", "id: 1\n", "retry: 1\n", ": c\n", "data: [DONE]\n\n", "\\u2028", '"', "\\"]
strings = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=6).map("".join)
STREAM = (
    b"\xef\xbb\xbf: hello\n\nid: 1\nevent: a\ndata: one\ndata:two\n\nretry: 200\nretry: x\ndata\n\n"
    b"event: lost\n\nid: \0\ndata: \xe6\x97\xa5\xe2\x80\xa8\r\n\r\nid\rdata:  x\r\r: keepalive\ndata: {}\n\ndata: cut"
)
EVENTS = [
    ServerEvent("one\ntwo", "a", "1"),
    ServerEvent("", "message", "1"),
    ServerEvent("日\u2028", "message", "1"),
    ServerEvent(" x", "message", ""),
    ServerEvent("{}", "message", ""),
]


def test_a_frame() -> None:
    assert sse.frame(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert sse.frame(b"{}", event="x", id="5-1") == b"id: 5-1\nevent: x\ndata: {}\n\n"
    assert sse.comment("keepalive") == b": keepalive\n"


def test_around_is_a_frame_in_two_parts() -> None:
    before, after = sse.around(b'{"a":', b"}")
    assert before + b"1" + after == sse.frame(b'{"a":1}')


def test_fields_cannot_end_their_line() -> None:
    assert sse.frame(b"{}", event="a\ndata: b", id="1\r\n\n2") == b"id: 12\nevent: adata: b\ndata: {}\n\n"
    assert sse.comment("a\n\nb") == b": ab\n"


@given(strings)
def test_any_json_comes_back_from_a_frame(text: str) -> None:
    value = {text: [text]}
    for raw in (json.dumps(value, indent=1), json.dumps(value, ensure_ascii=False, indent=1)):
        frame = sse.frame(raw.encode(), event="e", id="1")
        for splitlines in (False, True):
            (event,) = read(frame, splitlines=splitlines)
            assert (json.loads(event.data), event.event, event.id) == (value, "e", "1")


@given(words=st.lists(strings, min_size=1, max_size=5), name=strings, arguments=strings)
def test_no_string_of_an_upstream_can_forge_an_event(words: list[str], name: str, arguments: str) -> None:
    """Event-stream injection: an independent reader gets exactly the chunks that were meant, wherever it ends its lines."""
    call = {"index": 0, "id": name, "type": "function", "function": {"name": name, "arguments": arguments}}
    book = LogBook().started().text(*words).partial(reasoning=arguments).partial(tool_calls=[call]).add("X_" + name, arguments)
    stream = ChatEncoder(run(events=True, stream_ids=True)).encode(book.output("".join(words)).completed().entries)
    events = read(stream)
    assert read(stream, splitlines=True) == events
    assert events[-1] == Read("[DONE]", "", book.entries[-2].stream_id)
    deltas = [json.loads(event.data)["choices"][0]["delta"] for event in events[:-1]]
    assert [delta["content"] for delta in deltas if "content" in delta] == words
    assert [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta] == [call]
    assert all(event.event == "" for event in events)


@given(strings)
def test_no_error_message_can_forge_an_event(message: str) -> None:
    stream = ChatEncoder(run()).encode(LogBook().started().text("a").failed(code=message, message=message).entries)
    *_, last = read(stream, splitlines=True)
    assert json.loads(last.data)["error"] == {"message": message, "type": "server_error", "param": None, "code": message}


def test_a_megabyte_on_one_line() -> None:
    text = "data: \n" * 150_000
    stream = ChatEncoder(run()).encode(LogBook().started().text("", text).completed().entries)
    assert [json.loads(event.data)["choices"][0]["delta"].get("content") for event in read(stream)[:-1]] == [None, "", text, None]


def test_the_decoder_follows_the_standard() -> None:
    decoder = Decoder()
    assert decoder.feed(STREAM) == EVENTS
    assert (decoder.last_event_id, decoder.retry_ms) == ("", 200)


def test_the_decoder_reads_one_byte_at_a_time() -> None:
    decoder = Decoder()
    assert [event for byte in STREAM for event in decoder.feed(bytes([byte]))] == EVENTS


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=6).map(sorted))
def test_the_decoder_reads_the_same_however_the_bytes_were_cut(cuts: list[int]) -> None:
    decoder, events = Decoder(), []
    for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True):
        events += decoder.feed(STREAM[start:end])
    assert events == EVENTS


@pytest.mark.parametrize("name", endings())
def test_the_decoder_reads_every_stream_byte_by_byte(name: str) -> None:
    stream = ChatEncoder(run(stream_ids=True, events=True, include_usage=True)).encode(endings()[name].entries)
    decoder = Decoder()
    decoded = [event for byte in stream for event in decoder.feed(bytes([byte]))]
    assert [(event.data, event.id) for event in decoded] == [(event.data, event.id) for event in read(stream)]


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 100, b"data: x\n" * 20, b"x" * 100])
def test_the_decoder_is_bounded(stream: bytes) -> None:
    decoder = Decoder(max_event_bytes=64)
    with pytest.raises(EventTooLong):
        decoder.feed(stream)


def test_days_of_keepalives_are_not_a_long_event() -> None:
    decoder = Decoder(max_event_bytes=64)
    for _ in range(100):
        assert decoder.feed(b": keepalive\n") == []
    assert decoder.feed(b"data: x\n\n") == [ServerEvent("x")]
