"""Outward: nothing that a client says makes Headgate call an address, and what it calls cannot send it elsewhere. And the way in
that goes through a browser: a stranger's page whose name was made to mean this machine (DNS rebinding).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from gateway.access.hosts import HostNotAllowed, Hosts
from gateway.app import new_request_id, orchestrator_app, signer
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings
from gateway.transports.http_server import listening
from orchestrator.runs import Principal
from tests.gateway.http.native import bearer
from tests.gateway.http.sockets import handshake
from tests.security.world import CHAT, UPSTREAM_KEY, Upstream, World, a_world, listening_on_loopback

CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as world:
        yield world


@pytest.fixture
async def bait() -> AsyncIterator[tuple[str, Upstream]]:
    """An address that nobody has any reason to call, and who called it."""
    calls = Upstream(headers={"Content-Type": "application/json"}, body=b"{}")
    async with listening_on_loopback(calls.answer) as url:
        yield url, calls


# What clients say


async def test_addresses_in_a_request_go_upstream_as_they_came(world: World, bait: tuple[str, Upstream]) -> None:
    """Images, files and audio are fetched by the model's server or by nobody."""
    url, calls = bait
    world.upstream.says(CHUNK)
    parts = [
        {"type": "image_url", "image_url": {"url": f"{url}/image.png", "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}},
        {"type": "file", "file": {"file_url": f"{url}/file", "filename": "file:///etc/passwd"}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "web_page", "url": url},
        {"type": "text", "text": f"fetch {url}"},
    ]
    body = {"model": "said", "messages": [{"role": "user", "content": parts}], "web_search_options": {"url": url}}
    answer = await world.server.ask("POST", CHAT, headers=bearer(), json={**body, "stream": True})
    assert answer.status == 200
    ((_, _, asked),) = world.upstream.asked
    assert json.loads(asked)["messages"] == body["messages"]
    assert calls.asked == []


async def test_no_field_and_no_header_is_an_address_to_call(world: World, bait: tuple[str, Upstream]) -> None:
    url, calls = bait
    world.upstream.says(CHUNK)
    host = url.removeprefix("http://")
    headers = {"X-Forwarded-Host": host, "Forwarded": f"host={host}", "Referer": url, "Origin": url, "X-Original-URL": url}
    headers |= {"X-Forwarded-Proto": "http", "Destination": url, "traceparent": url, "Callback-URL": url, "X-Webhook": url}
    hooks = {"callback_url": url, "webhook": url, "webhook_url": url, "base_url": url, "api_base": url, "proxy": url}
    task = {"query": url, "model": "said", "session_id": url, "metadata": hooks, "context": {**hooks, "system_prompt": url}}
    assert (await world.server.ask("POST", "/api/v1/tasks", headers=bearer(**headers), json=task)).status == 200
    chat = {"model": f"any/{url}", "messages": [{"role": "user", "content": url}], "user": url, **hooks}
    assert (await world.server.ask("POST", CHAT, headers=bearer(**headers), json=chat)).status == 200
    (absolute,) = await world.server.raw(
        f"GET {url}/v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer sk-a\r\nConnection: close\r\n\r\n".encode()
    )
    assert absolute.status == 200
    assert calls.asked == []
    assert {path for path, _, _ in world.upstream.asked} == {"/v1/chat/completions", "/v1/models"}


async def test_nothing_that_proves_who_a_client_is_goes_upstream(world: World) -> None:
    world.upstream.says(CHUNK)
    headers = {"Authorization": "Bearer sk-a", "Cookie": "session=secret", "OpenAI-Organization": "org", "X-Secret": "secret"}
    body = {"model": "said", "messages": [{"role": "user", "content": "hi"}]}
    assert (await world.server.ask("POST", CHAT, headers=headers, json=body)).status == 200
    ((_, sent, _),) = world.upstream.asked
    assert sent["Authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert "secret" not in str(sent)
    assert "sk-a" not in str({name: value for name, value in sent.items() if name != "Authorization"})


# What upstreams say


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirecting_upstream_is_not_followed(world: World, bait: tuple[str, Upstream], status: int) -> None:
    """Our key goes with the request: whoever once answered for an upstream could have key and prompts sent to itself for good."""
    url, calls = bait
    world.upstream.status, world.upstream.headers = status, {"Location": f"{url}/v1/chat/completions"}
    for stream in (True, False):
        answer = await world.chat(stream=stream)
        assert (answer.status, answer.json["error"]["code"]) == (502, "upstream_protocol_error")
        assert url not in answer.body.decode()
    await world.server.ask("GET", "/v1/models", headers=bearer())
    assert calls.asked == []
    assert len(world.upstream.asked) == 3


async def test_an_upstreams_cookies_are_forgotten(world: World) -> None:
    world.upstream.says(CHUNK)
    world.upstream.headers["Set-Cookie"] = "tracked=1; Path=/"
    for _ in range(2):
        answer = await world.chat(stream=True)
        assert "set-cookie" not in answer.headers
    assert all("Cookie" not in sent for _, sent, _ in world.upstream.asked)


async def test_a_proxy_of_the_environment_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, world: World, bait: tuple[str, Upstream]
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, bait[0])
    world.upstream.says(CHUNK)
    assert (await world.chat()).status == 200
    assert bait[1].asked == []


# DNS rebinding

STRANGERS = [
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil-localhost",
    "xn--lcalhost-wxa",
]
OURS = [
    "localhost",
    "LOCALHOST:8080",
    "localhost.",
    "app.localhost:1",
    "127.0.0.1:8080",
    "127.9.9.9",
    "[::1]:8080",
    "192.0.2.1",
    "",
]
READS = [
    "/health",
    "/v1/models",
    "/api/v1/tasks",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/nowhere",
    "/api/v1/stream/sse?workflow_id=x",
]


def get(path: str, host: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("host", STRANGERS)
async def test_a_strangers_name_for_this_machine_reads_nothing_where_no_key_is_needed(serve: Any, engine: Any, host: str) -> None:
    server = await serve(Settings(), engine)
    for path in READS:
        (answer,) = await server.raw(get(path, host))
        assert answer.status == 421, path
        assert b"host_not_allowed" in answer.body
    (refused,) = await server.raw(handshake("task-x").replace(b"Host: localhost", f"Host: {host}".encode()), first=True)
    assert refused.status == 421


@pytest.mark.parametrize("host", OURS)
async def test_the_machines_own_names_read_as_ever(serve: Any, engine: Any, host: str) -> None:
    server = await serve(Settings(), engine)
    (answer,) = await server.raw(get("/v1/models", host))
    assert answer.status == 200


async def test_names_that_are_configured_and_servers_with_keys(serve: Any, engine: Any) -> None:
    """Behind a proxy on the same machine, pages come by the proxy's name. With keys, a rebound page has none."""
    listed = {"server": {"origins": ["https://app.example.com"]}}
    for settings, host, status in (
        (listed, "app.example.com", 200),
        (listed, "evil.example", 421),
        ({"server": {"origins": ["*"]}}, "evil.example", 200),
        ({"auth": {"mode": "keys", "keys": [{"key": "sk-a", "name": "a"}]}}, "evil.example", 401),
    ):
        server = await serve(Settings.model_validate(settings), engine)
        (answer,) = await server.raw(get("/v1/models", host))
        assert answer.status == status, (settings, host)


async def test_an_orchestrator_without_a_secret_is_not_called_by_a_strangers_name(engine: Any) -> None:
    """Anybody can sign with no secret, a page's script too; and to a rebound page the header is not even another origin's."""
    settings = Settings.model_validate({"role": "orchestrator"})
    async with (
        orchestrator_app(settings, engine, GatewayMetrics()) as (app, _),
        listening(app, host="127.0.0.1", port=0, new_request_id=new_request_id) as url,
        aiohttp.ClientSession() as http,
    ):
        for host, status in (("evil.example", 421), ("localhost", 200)):
            signed = signer(settings).sign("POST", "/engine/models", Principal("default", "anonymous"), "req-1", body=b"{}")
            headers = {"Content-Type": "application/json", "Host": host, "X-Headgate-Internal": signed, "x-request-id": "req-1"}
            async with http.post(f"{url}/engine/models", headers=headers, data=b"{}") as answer:
                assert answer.status == status, await answer.text()


def test_what_is_refused_says_what_to_do() -> None:
    with pytest.raises(HostNotAllowed, match=r"server\.origins"):
        Hosts([]).check("evil.example")
