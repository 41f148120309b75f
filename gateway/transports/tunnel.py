"""An upgraded connection that is passed on: after the handshake, bytes go both ways as they come, unread and unbuffered.

Whichever side ends, ends the other. A side that does not read is waited for, and meanwhile the other is not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import web
from multidict import CIMultiDict, MultiMapping
from yarl import URL

from gateway.transports.sink import room
from gateway.wire.ws_boundary import Boundary

_HANDSHAKE_S = 10.0
_MAX_HEAD_BYTES = 64 * 1024
_READ_BYTES = 64 * 1024
_HIGH_WATER_BYTES = 64 * 1024


class Handshake(NamedTuple):
    """How the far side answered. `body` is that of a refusal."""

    status: int
    headers: CIMultiDict[str]
    body: bytes


class Tunnel:
    """A connection to the far side, until the handshake and after it. Closed by `close`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stall_timeout_s: float) -> None:
        self.boundary = Boundary()
        self._reader = reader
        self._writer = writer
        self._stall_timeout_s = stall_timeout_s

    @classmethod
    async def to(cls, url: str, *, connect_s: float, stall_timeout_s: float) -> Tunnel:
        """Raises OSError, TimeoutError."""
        address = URL(url)
        async with asyncio.timeout(connect_s):
            reader, writer = await asyncio.open_connection(
                address.host, address.port, ssl=address.scheme == "https" or None, limit=_MAX_HEAD_BYTES
            )
        return cls(reader, writer, stall_timeout_s)

    async def shake(self, target: str, headers: MultiMapping[str]) -> Handshake:
        """Ask for the upgrade. Raises OSError, EOFError, ValueError, TimeoutError when the far side is not what it should be."""
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self._writer.write("\r\n".join(lines).encode("utf-8", "surrogateescape"))
        async with asyncio.timeout(_HANDSHAKE_S):
            try:
                head = (await self._reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
            except asyncio.LimitOverrunError as error:
                raise ValueError("no end of its headers") from error
            status_line, *fields = head.split("\r\n")[:-2]
            answered = CIMultiDict((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
            status = int(status_line.split(" ")[1])
            body = b"" if status == 101 else await self._reader.readexactly(int(answered.get("Content-Length", "0")))
        return Handshake(status, answered, body)

    async def join(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        """Answer the client's handshake with these headers, and pass bytes on until the far side ends.

        Raises ConnectionError when the client is simply gone, ClientStalled when it does not read.
        """
        response = web.StreamResponse(status=101, headers=headers)
        response.force_close()
        writer = await response.prepare(request)
        assert writer is not None
        upward = _Upward(request, self._writer)
        request.protocol.set_parser(upward)  # type: ignore[arg-type]  # aiohttp asks for no more than these two methods
        request.protocol.keep_alive(False)
        try:
            while data := await self._read():
                if request.transport is None or request.transport.is_closing():
                    raise ConnectionResetError("The client is gone")
                request.transport.write(data)
                self.boundary.feed(data)
                if request.protocol.writing_paused:
                    await room(request, writer, self._stall_timeout_s)
        finally:
            await upward.stop()
        return response

    def close(self) -> None:
        self._writer.transport.abort()

    async def _read(self) -> bytes:
        """What the far side sends next; nothing when it has hung up, be it while bytes of the client are on their way."""
        try:
            return await self._reader.read(_READ_BYTES)
        except ConnectionError:
            return b""


class _Upward:
    """Given what the client sends after its handshake, by aiohttp, in place of a parser."""

    def __init__(self, request: web.Request, writer: asyncio.StreamWriter) -> None:
        self._protocol = request.protocol
        self._writer = writer
        self._draining: asyncio.Task[None] | None = None
        self._stopped = False

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Never asks for the connection to be closed: the far side decides what such bytes deserve."""
        if not self._stopped and not self._writer.is_closing():
            self._writer.write(data)
            if self._draining is None and self._writer.transport.get_write_buffer_size() > _HIGH_WATER_BYTES:
                self._protocol.pause_reading()
                self._draining = asyncio.create_task(self._drain())
        return False, b""

    def feed_eof(self) -> None:
        self._stopped = True

    async def stop(self) -> None:
        self._stopped = True
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait((self._draining,))

    async def _drain(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            return  # whoever reads from there finds out
        finally:
            self._draining = None
        self._protocol.resume_reading()
