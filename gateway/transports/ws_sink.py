"""One WebSocket connection, as a place for streams' messages and as a source of a client's.

Messages leave as whole frames in one write, like server-sent events do, and what a client that does not read can cost is bounded
the same way: whoever has something to send waits until the transport has room, and a client that takes no byte for
`stall_timeout_s` is cut off. A client that talks too fast is listened to more slowly: what it sends beyond the allowance waits in
its own socket. A peer that is gone is noticed by pings (aiohttp's heartbeat: one after `ping_s` of silence, and half as long for
any byte to come back, or for some of what is on its way to be taken: the pong of a slow reader is behind all that).
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

import msgspec
from aiohttp import WSMsgType, web
from aiohttp.abc import AbstractStreamWriter

from gateway.transports.sink import room
from gateway.wire import websocket

_GOODBYE_S = 5.0
"""How long a client may take to answer a close."""


class SocketLimits(msgspec.Struct, frozen=True):
    """`messages_per_s` counts pings too; four seconds' worth of them may come at once."""

    ping_s: float = 20.0
    max_message_bytes: int = 64 * 1024
    messages_per_s: float = 50.0
    stall_timeout_s: float = 60.0


class Allowance:
    """How fast somebody may go on: `per_s` in the long run, `burst` at once. `clock` is monotonic."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._lead_s = burst / per_s
        self._clock = clock
        self._due = clock() - self._lead_s

    def wait_s(self) -> float:
        """Take one turn; how long to wait for it."""
        now = self._clock()
        self._due = max(self._due, now - self._lead_s) + 1 / self._per_s
        return max(self._due - now, 0.0)


class _Response(web.WebSocketResponse):
    """aiohttp's, but that a peer which takes what is on its way to it is not dead before its pong.

    `backlog` is how much is on its way, and how much has been taken so far, in bytes.
    """

    _taken = 0
    _behind = False

    def __init__(self, backlog: Callable[[], tuple[int, int]], **options: Any) -> None:
        super().__init__(**options)
        self._backlog = backlog

    def _pong_not_received(self) -> None:
        before, was_behind = self._taken, self._behind
        waiting, self._taken = self._backlog()
        self._behind = waiting > 0
        if self._taken > before and (self._behind or was_behind):
            # What it has taken last may still be in its kernel, before the ping. So the end of a backlog counts once, too.
            again = asyncio.get_running_loop().call_later(self._pong_heartbeat, self._pong_not_received)
            self._pong_response_cb = again
        else:
            super()._pong_not_received()


class Socket:
    """Not connected before `start`. Any task may send; one receives."""

    def __init__(self, request: web.Request, limits: SocketLimits, clock: Callable[[], float]) -> None:
        self.opened = asyncio.Event()
        self.response = _Response(
            self._backlog,
            timeout=_GOODBYE_S,
            heartbeat=limits.ping_s,
            autoping=False,
            compress=False,
            max_msg_size=limits.max_message_bytes + 1,  # aiohttp refuses what is as long as its limit
        )
        self._request = request
        self._writer: AbstractStreamWriter | None = None
        self._stall_timeout_s = limits.stall_timeout_s
        self._allowance = Allowance(limits.messages_per_s, 4 * limits.messages_per_s, clock)
        self._turn = asyncio.Lock()
        self._written = 0

    @property
    def acceptable(self) -> bool:
        """Whether the request is a WebSocket handshake at all."""
        return bool(self.response.can_prepare(self._request))

    async def start(self) -> None:
        """Complete the handshake."""
        self._writer = await self.response.prepare(self._request)
        self.opened.set()

    async def send(self, frames: bytes) -> None:
        """Send whole frames. Raises ConnectionError when the client is gone, ClientStalled when it does not read."""
        if self._request.protocol.writing_paused:
            await self._room()
        transport = self._request.transport
        if transport is None or transport.is_closing() or self.response.closed:
            raise ConnectionResetError("The client is gone")
        transport.write(frames)
        self._written += len(frames)

    async def receive(self) -> str | bytes | None:
        """The next message; None when there will be no more, whoever closed the socket and why."""
        while True:
            message = await self.response.receive()
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY | WSMsgType.PING | WSMsgType.PONG:
                    if wait_s := self._allowance.wait_s():
                        await asyncio.sleep(wait_s)
                case _:
                    return None
            match message.type:
                case WSMsgType.TEXT | WSMsgType.BINARY:
                    data: str | bytes = message.data
                    return data
                case WSMsgType.PING:
                    await self.send(websocket.pong(message.data))

    async def close(self, code: int) -> None:
        """Say why, and hang up. What was sent before still arrives, if the client reads it."""
        with suppress(ConnectionError):  # the client was quicker
            if self._request.protocol.writing_paused:
                await self._room()
            await self.response.close(code=code)

    def let_go(self) -> None:
        """The end of our part. A client that leaves unread what is still on its way is not waited for without a bound."""
        transport = self._request.transport
        if transport is not None and transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(self._stall_timeout_s, transport.abort)

    def _backlog(self) -> tuple[int, int]:
        """How much is on its way to the client, and how much it has taken."""
        transport = self._request.transport
        if transport is None:
            return 0, 0
        waiting = transport.get_write_buffer_size() + _unacknowledged(transport)
        return waiting, self._written - waiting

    async def _room(self) -> None:
        assert self._writer is not None
        async with self._turn:
            await room(self._request, self._writer, self._stall_timeout_s)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """What the kernel holds for the peer, which can be megabytes."""
    size = array("i", [0])
    try:
        ioctl(transport.get_extra_info("socket").fileno(), TIOCOUTQ, size)
    except OSError:
        return 0  # it is closing
    return size[0]


class SocketSink:
    """`sink.Sink` for one of the streams on a socket. The end of a stream is not the end of its socket."""

    started = True

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def start(self) -> None: ...

    async def write(self, frames: bytes) -> None:
        await self._socket.send(frames)

    async def finish(self, frames: bytes) -> None:
        if frames:
            await self._socket.send(frames)
