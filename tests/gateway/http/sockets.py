"""WebSocket clients for tests: a polite one with a real library, and a rude one that writes what it likes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.gateway.http.native import bearer
from tests.gateway.http.streams import WS

MASK = b"\x01\x02\x03\x04"


class Client:
    """An open socket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def next(self) -> Any:
        """The next message, decoded; EOFError when the server has closed the socket."""
        async with asyncio.timeout(5):
            message = await self.socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise EOFError(message)
        return json.loads(message.data)

    async def rest(self) -> list[Any]:
        """All messages up to the close."""
        messages = []
        while True:
            try:
                messages.append(await self.next())
            except EOFError:
                return messages

    async def until(self, type: str) -> Any:
        """The next event of this type."""
        while (message := await self.next()).get("type") != type:
            pass
        return message

    async def answered(self, **operation: Any) -> Any:
        """What the server answers to an operation; events in between are passed over."""
        await self.socket.send_str(json.dumps(operation))
        return await self.answer()

    async def answer(self) -> Any:
        while "op" not in (message := await self.next()):
            pass
        return message


@asynccontextmanager
async def watching(server: Any, run_id: str, query: str = "", **headers: str) -> AsyncIterator[Client]:
    url = f"{server.url}{WS}?workflow_id={run_id}{query}"
    async with server.http.ws_connect(url, headers=bearer(**headers), autoping=True) as socket:
        yield Client(socket)


def handshake(run_id: str, *headers: str, query: str = "") -> bytes:
    lines = [
        f"GET {WS}?workflow_id={run_id}{query} HTTP/1.1",
        "Host: localhost",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A client's frame, masked as RFC 6455 wants it."""
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | size])
    elif size < 1 << 16:
        head = b"\xfe" + size.to_bytes(2)
    else:
        head = b"\xff" + size.to_bytes(8)
    masked = bytes(byte ^ MASK[place % 4] for place, byte in enumerate(payload))
    return bytes([(0x80 if final else 0) | opcode]) + head + MASK + masked


@asynccontextmanager
async def rude(server: Any, run_id: str, key: str = "sk-a") -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection, upgraded."""
    async with server.connection() as (reader, writer):
        writer.write(handshake(run_id, f"Authorization: Bearer {key}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        yield reader, writer


async def next_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next frame's opcode and payload."""
    first, size = await reader.readexactly(2)
    assert first & 0x80
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8))
    return first & 0x0F, await reader.readexactly(size)


async def closed_with(reader: asyncio.StreamReader) -> int:
    """The code in the close frame; what comes before it is passed over."""
    while True:
        opcode, payload = await next_frame(reader)
        if opcode == 8:
            return int.from_bytes(payload[:2])


async def frames_to_the_end(reader: asyncio.StreamReader) -> list[tuple[int, bytes]]:
    """All frames until the connection is closed."""
    frames = []
    while True:
        try:
            frames.append(await next_frame(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            return frames
