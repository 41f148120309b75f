"""The ceiling: what the same HTTP stack costs when it passes an upstream's bytes through and does nothing else.

No gateway on aiohttp and uvloop can be faster, so its figures are quoted as a ratio to this one's, from the same run.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack

import aiohttp
import uvloop
from aiohttp import web

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


class Ceiling:
    def __init__(self, session: aiohttp.ClientSession, upstream: str) -> None:
        self._session = session
        self._upstream = upstream

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        response = web.StreamResponse(headers=_HEADERS)
        async with self._session.post(self._upstream, data=body, headers={"Content-Type": "application/json"}) as answer:
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
        return response


async def main(port: int, upstream: str) -> None:
    async with AsyncExitStack() as stack:
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        app = web.Application()
        app.router.add_post("/v1/chat/completions", Ceiling(session, upstream).complete)
        runner = web.AppRunner(app, access_log=None)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=8192).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9200)
    parser.add_argument("--upstream", default="http://127.0.0.1:9100/v1/chat/completions")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.port, arguments.upstream))
