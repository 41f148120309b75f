"""A gateway apart from its orchestrator: what crosses between them, what must not, and how each notices the other's end.

That clients cannot tell the difference is for the tests of the doors: those of compatibility, in their shape `split`, and those
of the HTTP doors with HEADGATE_DOORS_SHAPE=split.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.app import current_request_id, gateway, new_request_id, orchestrator_app, signer
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings, load
from gateway.settings_errors import ConfigError
from gateway.transports.drain import Drain
from gateway.transports.http_server import listening
from gateway.wire import websocket
from gateway.wire.ws_boundary import Boundary
from orchestrator.engine import Engine, Publication, PublishedEvent
from orchestrator.peers import Peers, peer_session
from orchestrator.remote import RemoteEngine
from orchestrator.runs import Principal, Run, RunState
from orchestrator.signing import HEADER
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.engines import MODELS, an_engine, script, until

KEY = "sk-alice"
ALICE = Principal("default", "alice")
SSE, WS = "/api/v1/stream/sse", "/api/v1/stream/ws"


def settings(**sections: Any) -> Settings:
    keys = [{"key": KEY, "name": "alice"}, {"key": "sk-mallory", "name": "mallory", "tenant": "other"}]
    return Settings.model_validate(
        {
            "auth": {"mode": "keys", "keys": keys},
            "streams": {"keepalive_s": 0.2, "hold_s": 0.1},
            "orchestrator": {"secret": "a secret of sixteen or more"},
            "upstreams": {"demo": {"kind": "scripted"}},
            "models": MODELS,
            **sections,
        }
    )


class Seen:
    """What reached the orchestrator: each request's headers and target."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.left = asyncio.Event()

    @web.middleware
    async def watch(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.raw_path, {name.lower(): value for name, value in request.headers.items()}))
        try:
            response: web.StreamResponse = await handler(request)
            return response
        finally:
            if request.path.startswith("/stream/"):
                self.left.set()


class Split:
    """Both halves, in this process and over real sockets."""

    def __init__(self, url: str, drain: Drain, http: aiohttp.ClientSession, seen: Seen, inner: AsyncExitStack) -> None:
        self.url = url
        self.drain = drain
        self.http = http
        self.seen = seen
        self._inner = inner

    async def lose_orchestrator(self) -> None:
        await self._inner.aclose()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.http.get(self.url + path, headers={"Authorization": f"Bearer {KEY}", **headers}) as response:
            return response.status, json.loads(await response.read())


@asynccontextmanager
async def split(engine: Engine, **sections: Any) -> AsyncIterator[Split]:
    configured, seen = settings(**sections), Seen()
    async with AsyncExitStack() as inner, AsyncExitStack() as outer:
        app, _ = await inner.enter_async_context(orchestrator_app(configured, engine, GatewayMetrics()))
        app.middlewares.insert(0, seen.watch)
        there = await inner.enter_async_context(listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id))
        session = await outer.enter_async_context(peer_session())
        peers = Peers([there], signer(configured), session, time.monotonic, current_request_id)
        remote = RemoteEngine(peers, engine.resolve, outage_s=5.0)
        app, drain = await outer.enter_async_context(gateway(configured, remote, GatewayMetrics(), peers))
        url = await outer.enter_async_context(listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id))
        http = await outer.enter_async_context(aiohttp.ClientSession())
        yield Split(url, drain, http, seen, inner)


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream("demo")


@pytest.fixture
async def engine(upstream: ScriptedUpstream) -> AsyncIterator[Engine]:
    async with an_engine(upstream=upstream) as engine:
        yield engine


@pytest.fixture
async def run(engine: Engine) -> Run:
    run = await engine.submit(ALICE, script("say 1 word; hang"))
    await until(engine, run.id, "LLM_PARTIAL", ALICE)
    return run


@pytest.fixture
async def both(engine: Engine) -> AsyncIterator[Split]:
    async with split(engine) as both:
        yield both


def bearer(**more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", **more}


class TestWhatCrosses:
    async def test_neither_keys_nor_tickets_nor_cookies_do(self, both: Split, run: Run) -> None:
        async with both.http.post(f"{both.url}/api/v1/stream/tickets", headers=bearer()) as response:
            ticket = (await response.json())["ticket"]
        callers = [(bearer(), ""), ({"X-API-Key": KEY}, ""), ({}, f"&ticket={ticket}"), ({}, f"&%74icket={ticket}")]
        for credentials, query in callers:
            headers = {**credentials, "Cookie": "session=canary", "X-Forwarded-For": "10.0.0.1"}
            query = f"?workflow_id={run.id}{query}&types="
            async with both.http.get(both.url + SSE + query, headers=headers) as response:
                assert response.status == 200
                await response.content.readline()
            async with both.http.ws_connect(both.url + WS + query, headers=headers) as socket:
                await socket.receive()
        targets = [target for target, _ in both.seen.requests if target.startswith("/stream/")]
        assert targets == [f"/stream/{name}?workflow_id={run.id}&types=" for _ in callers for name in ("sse", "ws")]
        for target, crossed in both.seen.requests:
            assert not [secret for secret in (KEY, ticket, "canary", "10.0.0.1") if secret in f"{target}{crossed}"], crossed
            assert HEADER.lower() in crossed

    async def test_a_ticket_for_one_run_stays_one(self, both: Split, engine: Engine, run: Run) -> None:
        """The orchestrator honours it for what a socket asks later, too."""
        other = await engine.submit(ALICE, script("hang"))
        body = {"workflow_id": run.id}
        async with both.http.post(f"{both.url}/api/v1/stream/tickets", json=body, headers=bearer()) as response:
            ticket = (await response.json())["ticket"]
        async with both.http.get(f"{both.url}{SSE}?workflow_id={other.id}&ticket={ticket}") as response:
            assert response.status == 404
        async with both.http.ws_connect(f"{both.url}{WS}?workflow_id={run.id}&ticket={ticket}") as socket:
            await socket.send_json({"op": "subscribe", "workflow_id": other.id})
            while "op" not in (message := await socket.receive_json(timeout=5)):
                pass
        assert (message["ok"], message["error"]["code"]) == (False, "run_not_found")

    async def test_requests_keep_their_id(self, both: Split, run: Run) -> None:
        await both.get(f"/api/v1/tasks/{run.id}", **{"x-request-id": "req-mine"})
        assert [headers["x-request-id"] for _, headers in both.seen.requests] == ["req-mine"]

    @pytest.mark.parametrize("path", ["/v1/models", "/api/v1/tasks", f"{SSE}?workflow_id=task-0", "/health"])
    @pytest.mark.parametrize("shape", ["split", "whole"])
    async def test_the_internal_header_is_refused_from_outside(self, engine: Engine, path: str, shape: str) -> None:
        async with AsyncExitStack() as stack:
            if shape == "split":
                both = await stack.enter_async_context(split(engine))
                url, http = both.url, both.http
            else:
                app, _ = await stack.enter_async_context(gateway(settings(), engine, GatewayMetrics()))
                url = await stack.enter_async_context(listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id))
                http = await stack.enter_async_context(aiohttp.ClientSession())
            good = signer(settings()).sign("GET", path, ALICE, "req-1")
            headers = bearer(**{HEADER: good, "x-request-id": "req-1"})
            async with http.get(url + path, headers=headers) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (403, "internal_header")

    async def test_another_tenants_run_is_none_at_every_door(self, both: Split, run: Run) -> None:
        for path in (f"{SSE}?workflow_id={run.id}", f"{WS}?workflow_id={run.id}", f"/api/v1/tasks/{run.id}"):
            status, answer = await both.get(path, Authorization="Bearer sk-mallory")
            assert (status, answer["error"]["code"]) == (
                (400, "websocket_expected") if path.startswith(WS) else (404, "run_not_found")
            )

    async def test_what_the_orchestrator_refuses_comes_in_its_words(self, both: Split, run: Run) -> None:
        """With the status, the envelope of the native routes and the client's own request id."""
        for query, status, code in (
            ("", 400, "missing_required_parameter"),
            (f"?workflow_id={run.id}&last_event_id=x", 400, "invalid_position"),
            ("?workflow_id=task-" + "0" * 32, 404, "run_not_found"),
        ):
            for path in (SSE, WS):
                upgrade = {
                    "Connection": "Upgrade",
                    "Upgrade": "websocket",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "A" * 22 + "==",
                }
                answered, answer = await both.get(path + query, **{"x-request-id": "req-7"}, **(upgrade if path == WS else {}))
                assert (answered, answer["error"]["code"], answer["error"]["request_id"]) == (status, code, "req-7")


class TestEnds:
    async def test_a_client_that_leaves_a_stream_leaves_the_orchestrator(self, both: Split, run: Run) -> None:
        for path in (SSE, WS):
            both.seen.left.clear()
            url = f"{both.url}{path}?workflow_id={run.id}"
            if path == WS:
                socket = await both.http.ws_connect(url, headers=bearer())
                await socket.receive()
                socket._response.close()  # the connection goes without a word
            else:
                async with both.http.get(url, headers=bearer()) as response:
                    await response.content.readline()
            async with asyncio.timeout(5):
                await both.seen.left.wait()

    async def test_an_orchestrator_that_goes_breaks_the_stream_off(self, both: Split, run: Run) -> None:
        """Not as if it were complete: a client that reconnects finds another one."""
        async with (
            both.http.get(f"{both.url}{SSE}?workflow_id={run.id}", headers=bearer()) as response,
            both.http.ws_connect(f"{both.url}{WS}?workflow_id={run.id}", headers=bearer()) as socket,
        ):
            await response.content.readuntil(b"LLM_PARTIAL")
            await socket.receive()
            await both.lose_orchestrator()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
            while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (message.type, socket.close_code) in (
                (aiohttp.WSMsgType.CLOSED, 1006),
                (aiohttp.WSMsgType.CLOSE, 1001),
            )
        for path in (SSE, "/api/v1/tasks"):
            status, answer = await both.get(f"{path}?workflow_id={run.id}")
            assert (status, answer["error"]["code"]) == (503, "backend_unavailable")

    async def test_a_draining_gateway_says_so_to_whoever_listens(self, both: Split, run: Run) -> None:
        async with (
            both.http.get(f"{both.url}{SSE}?workflow_id={run.id}", headers=bearer()) as response,
            both.http.ws_connect(f"{both.url}{WS}?workflow_id={run.id}", headers=bearer()) as socket,
        ):
            await response.content.readuntil(b"LLM_PARTIAL")
            await response.content.readuntil(b"\n\n")
            finishing = asyncio.create_task(both.drain.finish(0, spread_s=0))
            said = await response.content.read()
            while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            await finishing
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        event = json.loads(said.rpartition(b"data: ")[2])
        assert (event["type"], event["payload"]["scope"], event["payload"]["code"]) == ("ERROR_OCCURRED", "stream", "draining")

    async def test_leaving_the_chat_door_cancels_the_run(self, both: Split, engine: Engine, upstream: ScriptedUpstream) -> None:
        body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "/script\nsay 1 word; hang"}]}
        async with both.http.post(f"{both.url}/v1/chat/completions", json=body, headers=bearer()) as response:
            await response.content.readline()
            run_id = response.headers["X-Workflow-ID"]
        await until(engine, run_id, "STREAM_END", ALICE)
        assert (await engine.get(ALICE, run_id)).state is RunState.CANCELLED
        assert upstream.witness.calls[0].ending == "cancelled"

    async def test_a_viewer_who_came_back_meets_a_grace_period(self, both: Split, engine: Engine) -> None:
        """The grace runs at the gateway, and the viewer's stream passes through it."""
        body = {
            "model": "demo",
            "stream": True,
            "messages": [{"role": "user", "content": "/script\nsay 1 word; hang"}],
            "headgate_options": {"on_disconnect": 0.3},
        }
        async with both.http.post(f"{both.url}/v1/chat/completions", json=body, headers=bearer()) as response:
            await response.content.readline()
            run_id = response.headers["X-Workflow-ID"]
            async with both.http.get(f"{both.url}{SSE}?workflow_id={run_id}", headers=bearer()) as viewing:
                await viewing.content.readuntil(b"LLM_PARTIAL")
                response.close()
                for _ in range(4):  # keepalives, every 0.2 s
                    await viewing.content.readuntil(b": keepalive\n")
                assert (await engine.get(ALICE, run_id)).state is RunState.RUNNING


class TestTunnel:
    async def test_a_socket_controls_its_run(self, both: Split, engine: Engine, run: Run) -> None:
        async with both.http.ws_connect(f"{both.url}{WS}?workflow_id={run.id}", headers=bearer()) as socket:
            await socket.send_json({"op": "cancel", "reason": "enough"})
            types = []
            while (message := await socket.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                types.append(json.loads(message.data).get("type"))
        assert (types[-2:], message.data) == (["WORKFLOW_CANCELLED", "STREAM_END"], 1000)

    async def test_much_goes_both_ways(self, both: Split, engine: Engine, run: Run) -> None:
        """More than the buffers in between hold, while the other side does not read."""
        events = [PublishedEvent("X_LONG", message="x" * 50_000) for _ in range(20)]
        for number in range(1, 11):
            await engine.publish(ALICE, run.id, Publication("test", 1, number, events))
        async with both.http.ws_connect(f"{both.url}{WS}?workflow_id={run.id}", headers=bearer()) as socket:
            for _ in range(20):
                await socket.send_str(json.dumps({"op": "nonsense", "padding": "y" * 60_000}))
            seqs, answers = [], 0
            while len(seqs) < 200 or answers < 20:
                message = await socket.receive_json(timeout=10)
                answers += "op" in message
                seqs += [message["seq"]] if message.get("type") == "X_LONG" else []
        assert seqs == list(range(seqs[0], seqs[0] + 200))

    @pytest.mark.parametrize("size", [1, 2, 3, 5, 126, 70_000])
    def test_the_boundary_of_frames_is_found_however_they_are_cut(self, size: int) -> None:
        frames = [websocket.text(b"x" * length) for length in (0, 1, 125, 126, 127, 65_535, 65_536)] + [websocket.close(1001)]
        ends = {sum(map(len, frames[: number + 1])) for number in range(len(frames))}
        data, boundary, at = b"".join(frames), Boundary(), 0
        assert boundary.clear
        while at < len(data):
            boundary.feed(data[at : at + size])
            at = min(at + size, len(data))
            assert boundary.clear == (at in ends), at


class TestSettings:
    """A secret may be missing only where everybody who can connect could do the same at the front door."""

    GATEWAY, ORCHESTRATOR = {"HEADGATE_ROLE": "gateway"}, {"HEADGATE_ROLE": "orchestrator"}
    KEYS = {"HEADGATE_AUTH__MODE": "keys", "HEADGATE_AUTH__KEYS": "[{key: k, name: k}]"}  # noqa: RUF012
    SECRET = {"HEADGATE_ORCHESTRATOR__SECRET": "0123456789abcdef"}  # noqa: RUF012

    @pytest.mark.parametrize(
        "environ",
        [GATEWAY, ORCHESTRATOR, KEYS, GATEWAY | KEYS | SECRET, ORCHESTRATOR | KEYS | SECRET,
         ORCHESTRATOR | SECRET | {"HEADGATE_ORCHESTRATOR__HOST": "0.0.0.0"},
         GATEWAY | SECRET | {"HEADGATE_ORCHESTRATOR__URLS": "[http://a:1, https://b]"},
         ORCHESTRATOR | SECRET | {"HEADGATE_SERVER__HOST": "0.0.0.0"}],
    )  # fmt: skip
    def test_what_is_enough(self, environ: dict[str, str]) -> None:
        assert load(environ=environ)

    @pytest.mark.parametrize(
        ("environ", "mistake"),
        [
            (GATEWAY | KEYS, "orchestrator.secret: is needed by role gateway with auth.mode keys"),
            (ORCHESTRATOR | KEYS, "orchestrator.secret: is needed by role orchestrator with auth.mode keys"),
            (ORCHESTRATOR | {"HEADGATE_ORCHESTRATOR__HOST": "0.0.0.0"}, "while 0.0.0.0 is not this machine"),
            (GATEWAY | {"HEADGATE_ORCHESTRATOR__URLS": "http://10.0.0.1:8090"}, "while 10.0.0.1 is not this machine"),
            (GATEWAY | {"HEADGATE_ORCHESTRATOR__SECRET": "short"}, "should have 16 characters or more"),
            (GATEWAY | {"HEADGATE_ORCHESTRATOR__URLS": "http://127.0.0.1:1/path"}, "orchestrator.urls"),
            ({"HEADGATE_ROLE": "both"}, "role"),
        ],
    )
    def test_what_is_not(self, environ: dict[str, str], mistake: str) -> None:
        with pytest.raises(ConfigError) as refusal:
            load(environ=environ)
        assert mistake in "\n".join(refusal.value.lines)
