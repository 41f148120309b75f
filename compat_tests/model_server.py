"""The model server that the tests put behind Headgate: real sockets, obeying scripts, and a witness of how each call ended.

It runs in a thread of its own, so that clients may block. `/v1` plays the script in the prompt (docs/reference/scripted.md);
`/verbatim/v1` answers with the very bytes that the prompt spells, for what no script can say.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from orchestrator.upstreams.playing import prompt_of
from orchestrator.upstreams.scripted_server import ScriptedServer
from orchestrator.upstreams.witness import Ending, ScriptedCall, Witness
from tests.orchestrator.cache.embeddings import EmbeddingsServer

T = TypeVar("T")

WAIT_S = 10.0
"""How long a test waits for what must happen; reaching it is a failure."""


class Verbatim(msgspec.Struct):
    """What a prompt to the verbatim upstream spells."""

    body: str
    content_type: str = "text/event-stream"
    status: int = 200

    def prompt(self) -> str:
        return msgspec.json.encode(self).decode()


class _Witness(Witness):
    """Finds calls by their prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.by_prompt: dict[str, list[ScriptedCall]] = {}
        self._news = asyncio.Event()

    def open(self, key: str, model: str, body: dict[str, Any]) -> tuple[ScriptedCall, int]:
        opened = super().open(key, model, body)
        self.by_prompt.setdefault(key, []).append(opened[0])
        self._news.set()
        return opened

    async def call(self, prompt: str) -> ScriptedCall:
        while prompt not in self.by_prompt:
            self._news.clear()
            await self._news.wait()
        return self.by_prompt[prompt][-1]

    async def ending(self, prompt: str) -> Ending:
        call = await self.call(prompt)
        await call.closed.wait()
        assert call.ending is not None
        return call.ending

    async def endings(self, prompt: str) -> list[Ending | None]:
        calls = self.by_prompt.get(prompt, [])
        await asyncio.gather(*(call.closed.wait() for call in calls))
        return [call.ending for call in calls]


class ModelServer:
    """Called from the tests' thread."""

    def __init__(self) -> None:
        self.url = ""
        self._witness = _Witness()
        self._server = ScriptedServer(witness=self._witness)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def verbatim_url(self) -> str:
        return f"{self.url}/verbatim/v1"

    def calls(self, prompt: str) -> list[ScriptedCall]:
        """Every call that was made with this prompt so far."""
        return list(self._witness.by_prompt.get(prompt, ()))

    def prompts(self, part: str) -> list[str]:
        """Those so far that have this part, in the order in which they came first."""
        return [prompt for prompt in list(self._witness.by_prompt) if part in prompt]

    def asked(self, prompt: str) -> ScriptedCall:
        """The call with this prompt, as soon as it has arrived."""
        return self._wait(self._witness.call(prompt), WAIT_S)

    def ending(self, prompt: str, within_s: float = WAIT_S) -> Ending:
        """How the call with this prompt ended. Fails if it has not after `within_s`."""
        return self._wait(self._witness.ending(prompt), within_s)

    def endings(self, prompt: str) -> list[Ending | None]:
        """How every call with this prompt so far ended, as soon as all have."""
        return self._wait(self._witness.endings(prompt), WAIT_S)

    @contextmanager
    def running(self) -> Iterator[ModelServer]:
        ready = threading.Event()
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(ready),), name="model server")
        thread.start()
        try:
            assert ready.wait(WAIT_S)
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        app = self._server.app()
        app.router.add_post("/verbatim/v1/chat/completions", _verbatim)
        app.add_routes(EmbeddingsServer().routes())
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def _wait(self, news: Coroutine[Any, Any, T], within_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(news, within_s), self._loop).result()


async def _verbatim(request: web.Request) -> web.Response:
    answer = msgspec.json.decode(prompt_of(await request.json()), type=Verbatim)
    return web.Response(status=answer.status, body=answer.body.encode(), headers={"Content-Type": answer.content_type})
