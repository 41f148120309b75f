"""The scripted upstream as a real server: the same scripts, obeyed on a socket, faults and all.

For tests of `openai_http` and for drills with any other client. `python -m orchestrator.upstreams.scripted_server --port 9100`
runs it alone. It is no model server: it trusts whoever reaches it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.playing import Action, Play, prompt_of, script_for
from orchestrator.upstreams.script import Blank, Broken, Cut, Garbage, Line, Manner, Status, Wait
from orchestrator.upstreams.scripted import error_body
from orchestrator.upstreams.upstream import Delta, Finish, Usage
from orchestrator.upstreams.witness import MAX_CALLS, Ending, ScriptedCall, Witness

WRITE_BYTES = 64 * 1024
MAX_BODY = 32 << 20
PAGE = "<!doctype html><html><title>Gateway</title><body>Something is wrong.</body></html>"


class ScriptedServer:
    """Serves /v1/chat/completions and /v1/models. `witness` tells when each call's socket was closed, and by whom."""

    def __init__(
        self,
        script: str | None = None,
        witness: Witness | None = None,
        rate: float = math.inf,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.witness = witness or Witness()
        self.base_url = ""
        self.headers: deque[Mapping[str, str]] = deque(maxlen=MAX_CALLS)
        """What each of the latest calls came with."""
        self.peers: deque[object] = deque(maxlen=MAX_CALLS)
        """Where each of the latest calls came from: as many different ones as there were connections."""
        self._script = script
        self._rate = rate
        self._sleep = sleep

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        return app

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[ScriptedServer]:
        """Serve on a free port, unless one is given. A call whose client leaves is cancelled at once."""
        runner = web.AppRunner(self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            self.base_url = f"http://{host}:{runner.addresses[0][1]}/v1"
            yield self
        finally:
            await runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "scripted", "object": "model", "created": 1, "owned_by": "me"}]}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        self.peers.append(request.transport.get_extra_info("peername") if request.transport else None)
        body: dict[str, Any] = await request.json(loads=json.loads)
        prompt = prompt_of(body)
        try:
            script = script_for(body, self._script, self._rate)
        except InvalidRequest as error:
            return _json_error(error.status, error_body(Status(error.status, None, error.code, error.message)))
        record, earlier = self.witness.open(prompt, str(body.get("model")), body)
        play = Play(script, body, earlier_calls=earlier)
        wire = _Wire(request, body, play.manner, record, self._sleep)
        try:
            response = await wire.perform(play)
        except asyncio.CancelledError:
            self.witness.close(record, "cancelled")
            raise
        except ConnectionError:
            self.witness.close(record, "cancelled")
            return wire.response
        self.witness.close(record, wire.ending)
        return response


class _Wire:
    """One answer on one socket. The status line waits for the first output, as it does with real servers."""

    def __init__(
        self,
        request: web.Request,
        body: dict[str, Any],
        manner: Manner,
        record: ScriptedCall,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.ending: Ending = "completed"
        self.response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._request = request
        self._body = body
        self._manner = manner
        self._record = record
        self._sleep = sleep
        self._roles: set[int] = set()

    async def perform(self, play: Play) -> web.StreamResponse:
        if self._manner.whole or not self._body.get("stream"):
            return await self._perform_whole(play)
        for action in play.actions():
            refusal = await self._act(action)
            if refusal is not None:
                return refusal
            if self.ending != "completed":
                return self.response
        if "done" not in self._manner.without:
            await self._write(b"data: [DONE]\n\n")
        await self._prepare()
        await self.response.write_eof()
        return self.response

    async def _perform_whole(self, play: Play) -> web.StreamResponse:
        said: dict[int, dict[str, Any]] = {}
        usage: Usage | None = None
        for action in play.actions():
            match action:
                case Delta():
                    self._record.pieces += 1
                    _join(said.setdefault(action.choice, {"message": {"role": "assistant", "content": None}}), action)
                case Finish():
                    said.setdefault(action.choice, {"message": {"role": "assistant", "content": ""}})["finish_reason"] = (
                        action.reason
                    )
                case Usage() if "usage" not in self._manner.without:
                    usage = action
                case Wait():
                    await self._pause(action.seconds)
                case _ if (refusal := await self._act(action)) is not None:
                    return refusal
            if self.ending != "completed":
                return self.response
        choices = [{"index": index, "logprobs": None, **choice} for index, choice in said.items()]
        return web.json_response({**self._head("chat.completion"), "choices": choices, "usage": _usage(usage)})

    async def _act(self, action: Action) -> web.Response | None:
        """Returns a response when there is to be another one than the stream."""
        match action:
            case Delta():
                self._record.pieces += 1
                await self._delta(action)
            case Finish() if "finish" not in self._manner.without:
                await self._role(action.choice)
                await self._chunk([{"index": action.choice, "delta": {}, "logprobs": None, "finish_reason": action.reason}])
            case Usage() if "usage" not in self._manner.without:
                if (self._body.get("stream_options") or {}).get("include_usage"):
                    await self._chunk([], usage=_usage(action))
            case Wait():
                await self._pause(action.seconds)
            case Broken():
                await self._write(b'data: {"choices": [{"index": 0, "del\n\n')
            case Line():
                await self._long(b"data: ", b"x", action.size, b"\n\n")
            case Blank():
                await self._long(b"", b"\n", action.size, b"")
            case Cut():
                await self._cut(action)
            case Status():
                return await self._status(action)
            case Garbage():
                self.ending = "failed"
                return web.Response(text=PAGE, content_type="text/html")
        return None

    async def _delta(self, delta: Delta) -> None:
        await self._role(delta.choice)
        fields = {
            "content": delta.content,
            "reasoning_content": delta.reasoning,
            "refusal": delta.refusal,
            "tool_calls": delta.tool_calls,
        }
        said = {key: value for key, value in fields.items() if value is not None}
        await self._chunk([{"index": delta.choice, "delta": said, "logprobs": None, "finish_reason": None}])

    async def _role(self, choice: int) -> None:
        if choice not in self._roles and "role" not in self._manner.without:
            self._roles.add(choice)
            delta = {"role": "assistant", "content": ""}
            await self._chunk([{"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}])

    async def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> None:
        chunk = {**self._head("chat.completion.chunk"), "choices": choices, **more}
        await self._write(b"data: " + msgspec.json.encode(chunk) + b"\n\n")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-scripted", "object": kind, "created": 1_700_000_000, "model": self._body.get("model")}

    async def _cut(self, cut: Cut) -> None:
        if cut.mid:
            await self._write(b'data: {"choices": [{"index": 0, "delta": {"content": "half')
        self.ending = "cut"
        if self._request.transport is not None:
            self._request.transport.close()

    async def _status(self, status: Status) -> web.Response | None:
        self.ending = "failed"
        if not self.response.prepared:
            return _json_error(status.status, error_body(status), status.retry_after_s)
        await self._write(b"data: " + error_body(status) + b"\n\n")
        await self.response.write_eof()
        return None

    async def _pause(self, seconds: float) -> None:
        if math.isinf(seconds):
            await asyncio.Event().wait()
        await self._sleep(seconds)

    async def _long(self, head: bytes, filler: bytes, size: float, end: bytes) -> None:
        await self._write(head)
        left = size
        while left > 0:
            part = int(min(left, WRITE_BYTES))
            await self._write(filler * part)
            left -= part
        await self._write(end)

    async def _prepare(self) -> None:
        if not self.response.prepared:
            await self.response.prepare(self._request)

    async def _write(self, data: bytes) -> None:
        await self._prepare()
        if self._manner.newline != b"\n":
            data = data.replace(b"\n", self._manner.newline)
        size = self._manner.packets or len(data)
        for start in range(0, len(data), size or 1):
            await self.response.write(data[start : start + size])


def _join(choice: dict[str, Any], delta: Delta) -> None:
    """Add a delta to a whole message."""
    message = choice["message"]
    for key, value in (("content", delta.content), ("reasoning_content", delta.reasoning), ("refusal", delta.refusal)):
        if value is not None:
            message[key] = (message.get(key) or "") + value
    for call in delta.tool_calls or ():
        calls = message.setdefault("tool_calls", [])
        if len(calls) <= call["index"]:
            calls.append({"id": call["id"], "type": "function", "function": dict(call["function"])})
        else:
            calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]


def _usage(usage: Usage | None) -> dict[str, int] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _json_error(status: int, body: bytes, retry_after_s: float | None = None) -> web.Response:
    headers = {} if retry_after_s is None else {"Retry-After": f"{retry_after_s:g}"}
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


async def _serve(host: str, port: int) -> None:
    async with ScriptedServer(rate=40.0).running(host, port) as server:
        print(f"Scripted upstream at {server.base_url}")
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that obeys scripts in prompts.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9100)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.host, arguments.port))
