"""Runs whose every event a test decides, and readers of their native streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from gateway.wire.sse_decoder import Decoder, ServerEvent
from orchestrator.engine import Engine, Publication, PublishedEvent
from orchestrator.events import Entry
from tests.gateway.http.native import ALICE, bearer, begin
from tests.orchestrator.engines import until

SSE = "/api/v1/stream/sse"
WS = "/api/v1/stream/ws"


class Stage:
    """A run that says what the test publishes, and otherwise waits."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self.engine = engine
        self.id = run_id
        self._published = 0

    @classmethod
    async def open(cls, server: Any, engine: Engine) -> Stage:
        run_id = await begin(server, "hang", model="patient")
        await until(engine, run_id, "AGENT_STARTED", ALICE)
        return cls(engine, run_id)

    async def say(self, *texts: str, type: str = "LLM_PARTIAL") -> None:
        await self.publish(*(PublishedEvent(type, message=text) for text in texts))

    async def complete(self) -> None:
        await self.publish(PublishedEvent("WORKFLOW_COMPLETED", payload={"result": "done"}))

    async def publish(self, *events: PublishedEvent) -> None:
        self._published += 1
        await self.engine.publish(ALICE, self.id, Publication("test", 1, self._published, events))

    async def entries(self) -> list[Entry]:
        page = await self.engine.history(ALICE, self.id, limit=1000)
        return list(page.entries)


class Reader:
    """An open event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.bytes = b""
        self._decoder = Decoder()
        self._events: list[ServerEvent] = []

    async def receive(self) -> bytes:
        async with asyncio.timeout(5):
            piece: bytes = await self.response.content.readany()
        self.bytes += piece
        self._events += self._decoder.feed(piece)
        return piece

    async def next(self) -> ServerEvent:
        """The next event; EOFError after the last."""
        while not self._events:
            if not await self.receive():
                raise EOFError
        return self._events.pop(0)

    async def rest(self) -> list[ServerEvent]:
        while await self.receive():
            pass
        return self._events


@asynccontextmanager
async def reading(server: Any, run_id: str, query: str = "", **headers: str) -> AsyncIterator[Reader]:
    url = f"{server.url}{SSE}?workflow_id={run_id}{query}"
    async with server.http.get(url, headers=bearer(**headers)) as response:
        assert response.status == 200, await response.text()
        yield Reader(response)
