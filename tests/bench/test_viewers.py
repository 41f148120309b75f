"""The viewers count what the doors' own encoders write, however it is cut, and notice what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from struct import pack

import pytest

from bench.grpc_viewer import GrpcViewer
from bench.tally import Tally
from bench.viewers import SocketViewer, SseViewer, Viewer
from gateway.wire import websocket
from gateway.wire.native import SseRendering, WebSocketRendering, opening
from orchestrator.events import Entry, Event, EventType, encode
from orchestrator.rpc.translate import Updates

_STATUS = 16
RUN_ID = "task-0198c0de"
AT = "2026-01-01T00:00:00.000Z"
STAMPS = (2**62, 2**62 + 1, 2**62 + 2)  # of a future that no test reaches: ages are negative, and counted


def run() -> list[Entry]:
    """Three chunks, an output that has them all, and the end."""
    texts = [f"t={stamp} " for stamp in STAMPS]
    events = [
        Event(EventType.WORKFLOW_STARTED, AT, payload={"model": "mock"}),
        *(Event(EventType.LLM_PARTIAL, AT, "agent", text) for text in texts),
        Event(EventType.LLM_OUTPUT, AT, "agent", "".join(texts), {"finish_reason": "stop"}),
        Event(EventType.STREAM_END, AT),
    ]
    return [Entry(seq, 1_700_000_000_000, encode(event)) for seq, event in enumerate(events, 1)]


def sse(entries: Sequence[Entry]) -> bytes:
    rendering = SseRendering(RUN_ID, frozenset(), raw_names=False)
    return b"HTTP/1.1 200 OK\r\n\r\n" + opening(2000) + b"".join(map(rendering.event, entries))


def ws(entries: Sequence[Entry]) -> bytes:
    rendering = WebSocketRendering(RUN_ID, frozenset())
    return b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + b"".join(map(rendering.event, entries)) + websocket.close(1000)


def grpc(entries: Sequence[Entry]) -> bytes:
    updates = Updates(RUN_ID)
    messages = [updates.encode(entry) for entry in entries]
    framed = b"".join(http2(0, 0, 1, pack(">?I", False, len(message)) + message) for message in messages)
    return http2(4, 0, 0, b"") + http2(1, 4, 1, b"\x88") + framed + http2(1, 5, 1, b"\x88")


def http2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


Written = Callable[[Sequence[Entry]], bytes]
DOORS: list[tuple[type[Viewer], Written]] = [(SseViewer, sse), (SocketViewer, ws), (GrpcViewer, grpc)]


class Line(asyncio.Transport):
    """Takes what the viewer says."""

    def __init__(self) -> None:
        super().__init__()
        self.said = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.said += data


def watch(viewer_type: type[Viewer], tally: Tally, *, to_the_end: bool = True) -> Viewer:
    viewer = viewer_type(tally, RUN_ID, len(STAMPS), live=True, to_the_end=to_the_end)
    viewer.connection_made(Line())
    return viewer


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize(("viewer_type", "written"), DOORS)
async def test_every_event_is_seen_once_however_it_is_cut(viewer_type: type[Viewer], written: Written, size: int) -> None:
    tally = Tally()
    viewer = watch(viewer_type, tally)
    data = written(run())
    viewer.data_received(data[:_STATUS])  # the status is taken to arrive in one piece
    for at in range(_STATUS, len(data), size):
        assert not viewer.ended.done()
        viewer.data_received(data[at : at + size])
    assert viewer.ended.done()
    assert (tally.done, tally.incomplete, tally.chunks, len(tally.ages)) == (1, 0, 3, 3)


@pytest.mark.parametrize("without", range(5))
@pytest.mark.parametrize(("viewer_type", "written"), DOORS)
async def test_a_missing_event_is_noticed(viewer_type: type[Viewer], written: Written, without: int) -> None:
    entries, tally = run(), Tally()
    del entries[without]
    viewer = watch(viewer_type, tally)
    viewer.data_received(written(entries))
    viewer.connection_lost(None)
    assert (tally.done, tally.incomplete) == ((1, 0) if without == 4 and viewer_type is SseViewer else (0, 1))


@pytest.mark.parametrize(("viewer_type", "written"), DOORS)
async def test_a_stream_that_stops_is_not_complete(viewer_type: type[Viewer], written: Written) -> None:
    tally = Tally()
    viewer = watch(viewer_type, tally)
    data = written(run())
    viewer.data_received(data[: len(data) - 20])
    viewer.connection_lost(None)
    assert (tally.done, tally.incomplete, tally.chunks) == (0, 1, 3)


@pytest.mark.parametrize(("viewer_type", "written"), DOORS)
async def test_whoever_reads_back_has_seen_enough_with_the_last_chunk(viewer_type: type[Viewer], written: Written) -> None:
    tally = Tally()
    viewer = watch(viewer_type, tally, to_the_end=False)
    viewer.data_received(written(run()[:4])[: -len(http2(1, 5, 1, b"\x88")) if viewer_type is GrpcViewer else None])
    assert (viewer.ended.done(), tally.done, len(tally.totals)) == (True, 1, 1)


@pytest.mark.parametrize("viewer_type", [SseViewer, SocketViewer])
async def test_a_refusal_is_kept(viewer_type: type[Viewer]) -> None:
    tally = Tally()
    viewer = watch(viewer_type, tally)
    viewer.data_received(b"HTTP/1.1 404 Not Found\r\n\r\n")
    assert viewer.joined.done()
    assert (tally.incomplete, tally.rejected) == (1, [b"HTTP/1.1 404 Not Found\r\n\r\n"])
