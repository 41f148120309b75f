"""A server of the native API whose streams break off as a test plans it, and which says what it was asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

RUN = "task-0123456789abcdef0123456789abcdef"
AT = "2026-11-20T12:00:00.000Z"
MS = 1795176000000
"""The same time."""

Event = dict[str, Any]


def event(seq: int, type: str, **fields: Any) -> Event:
    return {"workflow_id": RUN, "seq": seq, "stream_id": f"{MS}-{seq}", "type": type, "timestamp": AT, **fields}


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
EVENTS: Sequence[Event] = (
    event(1, "WORKFLOW_STARTED", payload={"model": "m", "answers": ["agent"]}),
    event(2, "LLM_PARTIAL", agent_id="agent", message="It is "),
    event(3, "LLM_PARTIAL", agent_id="agent", message="a gate…\u2028"),
    event(4, "LLM_OUTPUT", agent_id="agent", message="It is a gate…\u2028", payload={"finish_reason": "stop", "usage": USAGE}),
    event(5, "WORKFLOW_COMPLETED", payload={"result": "It is a gate…\u2028", "usage": USAGE, "finish_reason": "stop"}),
    event(6, "STREAM_END"),
)
KEEPALIVE = b": keepalive\n"


def frame(event: Event) -> bytes:
    data = "[DONE]" if event["type"] == "STREAM_END" else json.dumps(event)
    name = {"LLM_PARTIAL": "thread.message.delta", "STREAM_END": "done"}.get(event["type"], event["type"])
    return f"id: {event['stream_id']}\nevent: {name}\ndata: {data}\n\n".encode()


Connection = Callable[[Sequence[Event]], Sequence[bytes | Event]]
"""What a connection does with the events that are due: what it sends before it breaks off."""


def whole(due: Sequence[Event]) -> Sequence[bytes | Event]:
    return [KEEPALIVE, *due]


def refuse(due: Sequence[Event]) -> Sequence[bytes | Event]:
    raise web.HTTPServiceUnavailable(
        text='{"error":{"code":"draining","message":"Shutting down.","request_id":"r"}}', headers={"Retry-After": "0"}
    )


def hang(due: Sequence[Event]) -> Sequence[bytes | Event]:
    return due[:2]


def cut_after(count: int, extra_bytes: int = 0) -> Connection:
    """After so many events, and so many bytes of the next one; over WebSocket the latter are not sent."""
    return lambda due: [*due[:count], KEEPALIVE, *(frame(each)[:extra_bytes] for each in due[count : count + 1])]


class FlakyServer:
    def __init__(self, *plan: Connection, events: Sequence[Event] = EVENTS) -> None:
        self.requests: list[tuple[str, str]] = []
        """Method, and path with query, of each."""
        self.bodies: list[Any] = []
        self.left = asyncio.Event()
        self._plan = list(plan)
        self._events = events

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._record])
        app.router.add_post("/api/v1/tasks", self.submit)
        app.router.add_get("/api/v1/tasks/{id}", self.task)
        app.router.add_post("/api/v1/tasks/{id}/cancel", self.cancel)
        app.router.add_get("/api/v1/stream/sse", self.sse)
        app.router.add_get("/api/v1/stream/progress", self.sse)
        app.router.add_get("/api/v1/stream/multi", self.sse)
        app.router.add_get("/api/v1/stream/ws", self.ws)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/api/v1/usage", self.usage)
        return app

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if request.can_read_body:
            self.bodies.append(await request.json())
        response: web.StreamResponse = await handler(request)
        return response

    async def submit(self, request: web.Request) -> web.Response:
        task = {"task_id": RUN, "workflow_id": RUN, "status": "QUEUED", "message": "", "created_at": AT}
        return web.json_response(task, headers={"X-Session-ID": "session-1"})

    async def task(self, request: web.Request) -> web.Response:
        task = dict.fromkeys(("session_id", "started_at", "completed_at", "metadata", "error"), None)
        task |= {"task_id": RUN, "workflow_id": RUN, "status": "COMPLETED", "query": "q", "model_used": "m", "created_at": AT}
        return web.json_response({**task, "result": "It is a gate…", "usage": USAGE, "progress": 1.0, "field_of_tomorrow": 1})

    async def cancel(self, request: web.Request) -> web.Response:
        return web.json_response({"success": True, "message": "The task is being cancelled.", "task_id": RUN}, status=202)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "headgate-demo"}, {"id": "other"}]})

    async def usage(self, request: web.Request) -> web.Response:
        total = {"runs": 3, "prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30, "cached_tokens": 0}
        total |= {"cost_usd": 0.000225, "cost_nano_usd": 225_000}
        groups = [
            {**total, "runs": 2, "key_id": "alice", "model": None, "day": "2026-11-19"},
            {**total, "runs": 1, "key_id": "bob", "model": None, "day": "2026-11-20", "cost_usd": None, "cost_nano_usd": None},
        ]
        groups = groups if "group_by" in request.query else []
        return web.json_response({"from": "2026-11-01", "to": "2026-11-20", "as_of": AT, "groups": groups, "total": total})

    async def sse(self, request: web.Request) -> web.StreamResponse:
        act, parts = self._next(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part if isinstance(part, bytes) else frame(part))
        await self._leave(request, act)
        return response

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        act, parts = self._next(request)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for part in parts:
            if not isinstance(part, bytes):
                await socket.send_str(json.dumps(part))
        if act is hang:
            while not (await socket.receive()).type.name.startswith("CLOS"):
                pass
            self.left.set()
        await self._leave(request, act)
        return socket

    def _next(self, request: web.Request) -> tuple[Connection, Sequence[bytes | Event]]:
        after = int(request.query.get("last_event_id", "0").rpartition("-")[2])
        act = self._plan.pop(0) if self._plan else whole
        return act, act([each for each in self._events if each["seq"] > after])

    async def _leave(self, request: web.Request, act: Connection) -> None:
        if act is hang and not self.left.is_set():
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        if act is not whole and request.transport is not None:
            request.transport.abort()


@asynccontextmanager
async def serving(server: FlakyServer) -> AsyncIterator[str]:
    async with TestServer(server.app()) as running:
        yield str(running.make_url("")).rstrip("/")
