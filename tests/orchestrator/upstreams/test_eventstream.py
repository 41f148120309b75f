"""The event-stream reader gives the same events however its bytes are cut, and keeps no more than one event."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.upstreams.eventstream import EventStreamReader
from orchestrator.upstreams.upstream import UpstreamGarbled


def read(stream: bytes, size: int | None = None, limit: int = 10_000) -> list[bytes]:
    reader = EventStreamReader(limit)
    step = size or max(len(stream), 1)
    events = [data for start in range(0, len(stream), step) for data in reader.feed(stream[start : start + step])]
    if reader.failure is not None:
        raise reader.failure
    return events


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data\n\ndata: \n\n", [b"", b""]),
        (b": keepalive\n\n:\n\ndata: a\n: between\n\n", [b"a"]),
        (b": keepalive\n: another\ndata: a\n\n", [b"a"]),
        (b"event: error\nid: 7\nretry: 10\ndata: a\n\nevent: x\n\n", [b"a"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"\n\n\n\ndata: a\n\n\n\n\n", [b"a"]),
        (b"database: a\n\n data: b\n\n", []),
        (b"data: a\n\ndata: unfinished", [b"a"]),
        (b"", []),
        ("data: é漢😀\u2028\u2029\u0085\x0b\x0c\x1c\n\n".encode(), ["é漢😀\u2028\u2029\u0085\x0b\x0c\x1c".encode()]),
    ],
)
@pytest.mark.parametrize("size", [None, 1, 2, 3, 7])
def test_events(stream: bytes, events: list[bytes], size: int | None) -> None:
    assert read(stream, size) == events


_BITS = st.sampled_from(
    [b"data: ", b"data", b": c", b"\n", b"\r", b"\r\n", b"\n\n", b"a", "é\u2028".encode(), b"\xef\xbb\xbf", b" "]
)


@given(st.lists(_BITS, max_size=40).map(b"".join), st.lists(st.integers(1, 9), min_size=1))
def test_packets_change_nothing(stream: bytes, sizes: list[int]) -> None:
    reader = EventStreamReader(10_000)
    events, at, turn = [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        events += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert events == read(stream) == reference(stream)


def reference(stream: bytes) -> list[bytes]:
    """The standard's algorithm, line by line (WHATWG HTML, section 9.2.6)."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data = [], None
    for line in text.split(b"\n")[:-1]:
        if not line:
            if data is not None:
                events.append(b"\n".join(data))
            data = None
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            data = [*(data or []), value[1:] if value.startswith(b" ") else value]
    return events


@pytest.mark.parametrize("size", [None, 1, 64])
@pytest.mark.parametrize("stream", [b"data: " + b"x" * 500, b"x" * 500, b"data: x\n" * 100, b"data: " + b"x" * 500 + b"\n\n"])
def test_a_long_event_is_refused(stream: bytes, size: int | None) -> None:
    with pytest.raises(UpstreamGarbled, match="an event of more than 400 bytes"):
        read(stream, size, limit=400)


@pytest.mark.parametrize("size", [None, 1, 64])
@pytest.mark.parametrize("long", [b"data: " + b"x" * 500, b"data: " + b"x" * 500 + b"\n\ndata: c\n\n"])
def test_what_came_before_a_long_event_is_read(size: int | None, long: bytes) -> None:
    """A word and a line that was too long came in one packet, and the word was lost: in two packets it was not.

    So it depended on the network whether a client got an HTTP status or the word and an error after it.
    """
    reader = EventStreamReader(400)
    stream = b"data: a\n\ndata: b\n\n" + long
    step = size or len(stream)
    events = [data for start in range(0, len(stream), step) for data in reader.feed(stream[start : start + step])]
    assert (events, reader.failure is None) == ([b"a", b"b"], False)


def test_the_longest_allowed_event_is_read_whole_from_single_bytes() -> None:
    """Joining what waits with every packet would take time that grows with the square: a minute instead of a moment."""
    data = b"data: " + b"x" * 300_000
    assert read(data + b"\n\n", 1, limit=len(data) + 1) == [data[6:]]


def test_endless_whitespace_is_not_kept() -> None:
    reader = EventStreamReader(10_000)
    packet = b"\n" * 20_000
    tracemalloc.start()
    try:
        for _ in range(10):
            assert reader.feed(packet) == []
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
