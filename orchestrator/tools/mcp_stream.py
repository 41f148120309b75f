"""Noticing that an MCP server is gone while nobody asks it anything: its output ends, and the library keeps that to itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

import anyio
from mcp.client import Transport as Transport
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage

Messages = ReadStream[SessionMessage | Exception]
Streams = tuple[Messages, WriteStream[SessionMessage]]


class _Watched:
    """A stream that sets an event when it ends."""

    def __init__(self, stream: Messages, ended: asyncio.Event) -> None:
        self._stream = stream
        self._ended = ended

    async def receive(self) -> SessionMessage | Exception:
        try:
            return await self._stream.receive()
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._ended.set()
            raise

    async def aclose(self) -> None:
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


@asynccontextmanager
async def watched(transport: AbstractAsyncContextManager[Streams], ended: asyncio.Event) -> AsyncIterator[Streams]:
    """The same transport; `ended` is set when the server closes its end."""
    async with transport as (read, write):
        yield _Watched(read, ended), write
