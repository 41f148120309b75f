"""W3C trace context: what is valid, and that it goes from the client to the logs and to the upstream, past every process."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from gateway.observe import logs
from orchestrator import trace
from orchestrator.upstreams.config import OpenAIConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.upstream import Call
from tests.gateway.http.native import bearer, begin, settings

ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("given", [PARENT, PARENT[:-1] + "0", PARENT[:-2] + "ff"])
def test_a_valid_parent_goes_on_unchanged(given: str) -> None:
    found = trace.parse([given], ["a=1", "b=2"])
    assert found is not None
    assert (found.id, found.headers()) == (ID, {"traceparent": given, "tracestate": "a=1,b=2"})


@pytest.mark.parametrize("more", ["", "-what-comes-later"])
def test_a_later_version_is_read_as_this_one(more: str) -> None:
    assert trace.parse([f"01{PARENT[2:]}{more}"]) == trace.Trace(PARENT)


@pytest.mark.parametrize(
    "given",
    [
        [],
        [""],
        [PARENT, PARENT],
        [PARENT.upper()],
        [f" {PARENT}"],
        [f"{PARENT}\n"],
        [f"{PARENT}-more"],
        [f"01{PARENT[2:]}more"],
        [f"ff{PARENT[2:]}"],
        [PARENT.replace(ID, "0" * 32)],
        [PARENT.replace("00f067aa0ba902b7", "0" * 16)],
        [PARENT.replace("4bf9", "४bf9")],
        [PARENT[:-1]],
        ["0" * 100_000],
    ],
)
def test_anything_else_is_no_trace(given: list[str]) -> None:
    assert trace.parse(given, ["a=1"]) is None


@pytest.mark.parametrize("state", ["", "a=\r\nX-Evil: 1", "a=ä", "a" * 513])
def test_a_bad_state_does_not_spoil_the_parent(state: str) -> None:
    assert trace.parse([PARENT], [state]) == trace.Trace(PARENT)


def test_a_trace_ends_where_it_was_entered() -> None:
    with trace.inside(trace.Trace(PARENT)):
        assert trace.carried() == {"traceparent": PARENT}
        with trace.inside(None):
            assert trace.carried() == {}
    assert trace.current() is None


@pytest.mark.parametrize(("sent", "logged"), [(PARENT, ID), ("nonsense", None), (None, None)])
async def test_the_logs_name_it(serve: Any, engine: Any, sent: str | None, logged: str | None) -> None:
    server = await serve(settings(), engine)
    with capture_logs(processors=[logs.traced]) as lines:
        answer = await server.ask("GET", "/health", headers={} if sent is None else {"traceparent": sent})
    assert answer.status == 200
    assert [line.get("trace_id") for line in lines if line["event"] == "request"] == [logged]
    assert "traceparent" not in answer.headers


async def test_the_runs_request_keeps_it(serve: Any, engine: Any) -> None:
    """Later attempts, perhaps elsewhere, find it there."""
    server = await serve(settings(), engine)
    headers = bearer(traceparent=PARENT, tracestate="a=1")
    body = {"query": "/script\nsay 1 word"}
    answer = await server.ask("POST", "/api/v1/tasks", headers=headers, json=body)
    request = await engine._log.request(answer.json["task_id"])
    assert request.trace == trace.Trace(PARENT, "a=1")
    without = await engine._log.request(await begin(server, "say 1 word"))
    assert without.trace is None


async def test_the_upstream_is_told(aiohttp_server_url: Any) -> None:
    url, seen = aiohttp_server_url
    async with upstream_session() as session:
        upstream = OpenAIUpstream("local", OpenAIConfig(kind="openai", base_url=url), session)
        for found in (trace.Trace(PARENT, "a=1"), None):
            with trace.inside(found):
                async for _ in upstream.stream(Call("task-1", "m", {"messages": []})):
                    pass
    assert [(headers.get("traceparent"), headers.get("tracestate")) for headers in seen] == [(PARENT, "a=1"), (None, None)]


@pytest.fixture
async def aiohttp_server_url() -> Any:
    """An upstream that keeps the headers that it is sent."""
    seen: list[Any] = []

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        seen.append(request.headers.copy())
        answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
        return web.Response(body=json.dumps(answer), content_type="application/json")

    app = web.Application()
    app.router.add_post("/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", seen
    await runner.cleanup()
