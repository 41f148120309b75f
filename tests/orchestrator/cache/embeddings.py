"""A server of embeddings for tests: a text means the words in it, whatever their order, case and punctuation.

Each word is hashed to a place in the vector, so that questions which share most of their words are alike, and the same on every
machine. It is no model; but what asks it does so over a socket, as it would ask one.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

DIMENSIONS = 256


def meaning(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4]) % DIMENSIONS] += 1.0
    return vector


class EmbeddingsServer:
    """`asked`: the texts, in order. With `stuck` it answers nothing until that is set; with a `status`, that and no embedding."""

    def __init__(self) -> None:
        self.base_url = ""
        self.asked: list[tuple[str, str]] = []
        self.stuck: asyncio.Event | None = None
        self.status = 200
        self.body: object = None

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/embeddings", self.embed)]

    async def embed(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append((body["model"], body["input"]))
        if self.stuck is not None:
            await self.stuck.wait()
        if self.status != 200 or self.body is not None:
            return web.json_response(self.body, status=self.status)
        embedding = {"object": "embedding", "index": 0, "embedding": meaning(body["input"])}
        return web.json_response({"object": "list", "data": [embedding], "model": body["model"]})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddingsServer]:
        app = web.Application()
        app.add_routes(self.routes())
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            await runner.cleanup()
