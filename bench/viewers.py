"""Who watches a run at a native door. Raw protocols: a client library would cost more than what is measured.

A viewer reads a run from its first event. It counts the chunks by the stamp that each carries, holds every event against the
one before it, and knows how its door says that a stream is complete.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import ABC, abstractmethod
from typing import cast

from bench.tally import Tally

_EVENT = re.compile(
    rb'"seq":(\d+),"stream_id":"[\d-]+","type":"'
    rb'(?:LLM_PARTIAL","timestamp":"[^"]+","agent_id":"[^"]+","message":"t=(\d+) "|(?!LLM_PARTIAL)[A-Z_]+")'
)
"""As far into an event's envelope as tells its place and, of a chunk, its stamp."""

_LONGEST = 512
"""Bytes that such a beginning may have."""


class Viewer(asyncio.Protocol, ABC):
    """One connection, one stream. `chunks` are all that the run will say; `live` viewers go by the age of what they see,
    and stay to the end; others have seen enough when they have the last chunk.
    """

    def __init__(self, tally: Tally, run_id: str, chunks: int, *, live: bool, to_the_end: bool) -> None:
        loop = asyncio.get_running_loop()
        self.joined: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._tally = tally
        self._run_id = run_id
        self._expected = chunks
        self._live = live
        self._to_the_end = to_the_end
        self._seen = self._seq = 0
        self._whole = True
        self._joined_at = 0
        self._began = time.monotonic_ns()

    @abstractmethod
    def request(self) -> bytes:
        """What a connection begins with."""

    @abstractmethod
    def data_received(self, data: bytes) -> None: ...

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so
        self._transport.write(self.request())

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(complete=False)

    def close(self) -> None:
        self._transport.close()

    def _join(self, accepted: bool, data: bytes) -> None:
        """The server has answered."""
        self._joined_at = time.monotonic_ns()
        if accepted:
            self.joined.set_result(None)
        else:
            self._tally.rejected.append(data[:300])
            self._end(complete=False)

    def _event(self, seq: int, stamp: bytes | None, now: int) -> None:
        self._whole = self._whole and seq == self._seq + 1
        self._seq = seq
        if stamp is None:
            return
        self._seen += 1
        tally = self._tally
        tally.chunks += 1
        if self._live:
            written = int(stamp)
            if written > self._joined_at:  # what was said before says how late the viewer is, not the server
                tally.ages.append(now - written)
                tally.flow_began = tally.flow_began or now
        if self._seen == 1:
            tally.firsts.append(now - self._began)
        if self._seen == self._expected:
            tally.totals.append(now - self._began)
            tally.last_chunk = now
            if not self._to_the_end:
                self._end(complete=True)

    def _end(self, *, complete: bool) -> None:
        if self.ended.done():
            return
        if complete and self._whole and self._seen == self._expected:
            self._tally.done += 1
        else:
            self._tally.incomplete += 1
        if not self.joined.done():
            self.joined.set_result(None)  # nobody need wait for it any more
        self.ended.set_result(None)


class _JsonViewer(Viewer):
    """Envelopes in some framing that leaves them in one piece."""

    _accepted: bytes
    _last: bytes

    def __init__(self, tally: Tally, run_id: str, chunks: int, *, live: bool, to_the_end: bool) -> None:
        super().__init__(tally, run_id, chunks, live=live, to_the_end=to_the_end)
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._joined_at:
            self._join(data[9:12] == self._accepted, data)
        seen, end = self._rest + data if self._rest else data, 0
        for match in _EVENT.finditer(seen):
            seq, stamp = match.groups()
            end = match.end()
            self._event(int(seq), stamp, now)
        self._rest = seen[max(end, len(seen) - _LONGEST) :]
        if self._last in seen:
            self._bye()
            self._end(complete=True)

    def _get(self, path: str, *headers: str) -> bytes:
        lines = (f"GET {path}?workflow_id={self._run_id} HTTP/1.1", "Host: localhost", *headers)
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def _bye(self) -> None:
        """The server has said that this was all."""


class SseViewer(_JsonViewer):
    _accepted = b"200"
    _last = b"\nevent: done\ndata: [DONE]\n\n"

    def request(self) -> bytes:
        return self._get("/api/v1/stream/sse")


class SocketViewer(_JsonViewer):
    """Frames of a server that are text and not compressed have their JSON in the clear."""

    _accepted = b"101"
    _last = b"\x88\x02\x03\xe8"  # close, 1000

    def request(self) -> bytes:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        return self._get("/api/v1/stream/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)

    def _bye(self) -> None:
        self._transport.write(b"\x88\x82\0\0\0\0\x03\xe8")
