"""Where a stream's bytes go. A sink takes whole frames, holds back nothing, and bounds what a client that does not read can cost.

`write` returns when the transport has room again, so a slow client slows its own cursor and nothing else. A client that takes no
byte for `stall_timeout_s` is cut off. What is in memory for it is the transport's buffer (64 KiB) and one write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter


class ClientStalled(ConnectionResetError):
    """The client took no byte for too long, and its connection was aborted."""


class Sink(Protocol):
    @property
    def started(self) -> bool:
        """The status and the headers have been sent: from here on errors are told in-band."""

    async def start(self) -> None:
        """Send the status and the headers."""

    async def write(self, frames: bytes) -> None:
        """Send whole frames. Raises ConnectionError when the client is gone, ClientStalled when it does not read."""

    async def finish(self, frames: bytes) -> None:
        """Send the last frames and end the body at once; the connection stays usable."""


EVENT_STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


class EventStreamSink:
    """Server-sent events as the body of one HTTP response, never compressed. `more` headers are known when it starts."""

    def __init__(
        self,
        request: web.Request,
        *,
        stall_timeout_s: float,
        headers: Mapping[str, str] = EVENT_STREAM_HEADERS,
        more: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._protocol = request.protocol
        self._writer: StreamWriter | None = None
        self._stall_timeout_s = stall_timeout_s
        self._more = more

    @property
    def started(self) -> bool:
        return self._writer is not None

    async def start(self) -> None:
        if self._writer is None:
            self.response.headers.update(self._more())
            self._writer = cast(StreamWriter, await self.response.prepare(self._request))

    async def write(self, frames: bytes) -> None:
        if self._writer is None:
            await self.start()
        assert self._writer is not None
        # aiohttp would wait for room itself, but without a bound.
        await self._writer.write(frames, drain=False)
        if self._protocol.writing_paused:
            await room(self._request, self._writer, self._stall_timeout_s)

    async def finish(self, frames: bytes) -> None:
        if frames:
            await EventStreamSink.write(self, frames)
        else:
            await self.start()
        await self.response.write_eof()


async def room(request: web.Request, writer: AbstractStreamWriter, stall_timeout_s: float) -> None:
    """Wait until the transport takes bytes again. One at a time per connection: aiohttp's waiters share one future."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("The client is gone")
    waiting = transport.get_write_buffer_size()
    while request.protocol.writing_paused and not transport.is_closing():
        try:
            async with asyncio.timeout(stall_timeout_s):
                await writer.drain()
        except TimeoutError:
            before, waiting = waiting, transport.get_write_buffer_size()
            if waiting >= before:
                transport.abort()
                raise ClientStalled("The client does not read") from None
    if transport.is_closing():
        raise ConnectionResetError("The client is gone")
