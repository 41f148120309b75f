"""What stands before all routes: safe headers, who is behind a proxy, bounds on connections, and leaving quietly (P19)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict
from structlog.testing import capture_logs

from gateway.access.browsers import Browsers
from gateway.access.forwarding import Forwarding
from gateway.access.origins import Origins
from gateway.transports.drain import Drain
from gateway.transports.http_server import Limits, listening
from tests.gateway.http.native import bearer, begin, settings

CHAT = "/v1/chat/completions"
ASK = {"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}]}
SAFE = {"server": "headgate", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(server={"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]}), engine)


# Safe headers


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/health", 200), ("GET", "/no", 404), ("GET", CHAT, 405)])
async def test_every_answer_is_safe_to_look_at(server: Any, method: str, path: str, status: int) -> None:
    answer = await server.ask(method, path)
    assert (answer.status, {name: answer.headers.get(name) for name in SAFE}) == (status, SAFE)
    assert "strict-transport-security" not in answer.headers


async def test_streams_and_what_is_not_http_are_no_exception(server: Any) -> None:
    (broken,) = await server.raw(b"nonsense\r\n\r\n")
    run = await begin(server, "say 3 words")
    streamed = await server.ask("GET", f"/api/v1/stream/sse?workflow_id={run}", headers=bearer())
    for answer in (broken, streamed):
        assert {name: answer.headers.get(name) for name in SAFE} == SAFE


async def test_no_page_may_frame_ours(server: Any) -> None:
    answer = await server.ask("GET", "/docs")
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_page_without_a_policy_gets_one_and_tls_is_insisted_on() -> None:
    headers: dict[str, str] = {}
    Browsers(Origins([], trust_host=True), keyless=False, tls=True).inform(make_mocked_request("GET", "/"), headers, "text/html")
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Strict-Transport-Security"] == "max-age=31536000"


# Behind proxies


def client(peer: str, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8", "2001:db8::/32")) -> str:
    return Forwarding([ipaddress.ip_network(network) for network in trusted]).client(_from(peer, *forwarded))


def _from(peer: str, *forwarded: str, **headers: str) -> web.Request:
    transport = _Transport(peer)
    named = [("Host", "inner:8080"), *(("X-Forwarded-For", value) for value in forwarded)]
    named += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return make_mocked_request("GET", "/", headers=CIMultiDict(named), transport=transport)


class _Transport(asyncio.Transport):
    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, 4711)})


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7, 10.9.9.9"], "192.0.2.7"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7:5000"], "192.0.2.7"),
        ("10.0.0.1", ["[2001:db9::1]:5000"], "2001:db9::1"),
        ("2001:db8::5", ["192.0.2.7"], "192.0.2.7"),
        ("::ffff:10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["nonsense\u2028, "], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3"], "10.0.0.3"),
        ("198.51.100.1", ["192.0.2.7"], "198.51.100.1"),
    ],
)
def test_the_client_is_the_last_address_that_a_trusted_proxy_vouches_for(peer: str, forwarded: list[str], expected: str) -> None:
    assert client(peer, *forwarded) == expected


def test_nobody_is_trusted_unless_they_are_named() -> None:
    assert client("127.0.0.1", "6.6.6.6", trusted=()) == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("10.0.0.1", {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "api.example.com"}, "https://api.example.com"),
        ("10.0.0.1", {"X_Forwarded_Host": "a.example, b.example:8443"}, "http://b.example:8443"),
        ("10.0.0.1", {"X_Forwarded_Proto": "javascript", "X_Forwarded_Host": "a/b@c"}, "http://inner:8080"),
        ("6.6.6.6", {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "evil.example"}, "http://inner:8080"),
    ],
)
def test_urls_begin_as_the_client_wrote_them(peer: str, headers: dict[str, str], expected: str) -> None:
    forwarding = Forwarding([ipaddress.ip_network("10.0.0.0/8")])
    assert forwarding.base_url(_from(peer, **headers)) == expected


async def test_the_log_names_the_client_behind_the_proxy(server: Any) -> None:
    with capture_logs() as lines:
        await server.ask("GET", "/health", headers={"X-Forwarded-For": "6.6.6.6, 192.0.2.7, 10.1.1.1"})
    assert [line["client"] for line in lines if line["event"] == "request"] == ["192.0.2.7"]


# Bounds


@asynccontextmanager
async def small(limits: Limits) -> AsyncIterator[int]:
    """A server of its own that answers anything with `ok`, and its port."""

    async def ok(request: web.Request) -> web.Response:
        return web.Response(body=await request.read() or b"ok")

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", ok)
    async with listening(app, host="127.0.0.1", port=0, new_request_id=lambda: "id", limits=limits) as url:
        yield int(url.rpartition(":")[2])


async def test_headers_that_do_not_come_are_not_waited_for() -> None:
    async with small(Limits(header_timeout_s=0.05)) as port, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nA: ")
        assert await reader.read() == b""
        writer.close()


async def test_the_second_requests_headers_are_bounded_as_well_and_idle_connections_are_not() -> None:
    async with small(Limits(header_timeout_s=0.05)) as port, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.15):
                    await reader.read(1)
        writer.write(b"G")
        assert await reader.read() == b""
        writer.close()


async def test_a_slow_body_is_no_slow_head() -> None:
    async with small(Limits(header_timeout_s=0.05)) as port, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        for piece in (b"s", b"l", b"o", b"w"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.03):
                    await reader.read(1)
            writer.write(piece)
        assert (await reader.readuntil(b"slow")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_connection_too_many_is_told_so_and_a_place_that_was_left_is_taken() -> None:
    async with small(Limits(max_connections=2)) as port, asyncio.timeout(5):
        open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in open_ones:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"ok")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert b"\r\nRetry-After: 1\r\n" in answer
        writer.close()
        open_ones[0][1].write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await open_ones[0][0].read()
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}/") as again:
            assert again.status == 200
        for _, writer in open_ones:
            writer.close()


# P19: leaving quietly


async def test_readiness_fails_before_anything_is_refused(server: Any) -> None:
    async def states() -> tuple[int, int, int]:
        answers = [await server.ask("GET", "/readiness"), await server.ask("POST", CHAT, headers=bearer(), json=ASK)]
        alive = await server.ask("GET", "/health")
        return answers[0].status, answers[1].status, alive.status

    assert await states() == (200, 200, 200)
    server.drain.announce()
    assert await states() == (503, 200, 200)
    server.drain.begin()
    assert await states() == (503, 503, 200)


async def test_who_leaves_keeps_no_connection(server: Any) -> None:
    server.drain.announce()
    assert (await server.ask("GET", "/health")).headers["connection"] == "close"


async def test_what_is_open_ends_resumably_and_not_all_at_once(serve: Any, engine: Any) -> None:
    """Ten streams of one endless run: each is told how to go on, and each at its own moment."""
    moments = iter(number / 50 for number in range(10))
    server = await serve(settings(), engine)
    server.drain._spread = lambda seconds: next(moments)
    run = await begin(server, "say 1 word; wait 60s")
    ended: list[float] = []
    begun = [asyncio.Event() for _ in range(10)]

    async def watch(number: int) -> bytes:
        async with server.http.get(f"{server.url}/api/v1/stream/sse?workflow_id={run}", headers=bearer()) as response:
            text = b""
            async for line in response.content:
                begun[number].set()
                text += line
            ended.append(asyncio.get_running_loop().time())
            return text

    async with asyncio.timeout(10):
        watching = [asyncio.create_task(watch(number)) for number in range(10)]
        for event in begun:
            await event.wait()
        await server.drain.finish(0)
        texts = await asyncio.gather(*watching)
    assert all(b"draining" in text and b"event: done" not in text for text in texts)
    assert max(ended) - min(ended) > 0.1


def test_beginning_announces() -> None:
    drain = Drain(spread=lambda seconds: 0.0)
    drain.begin()
    assert (drain.leaving, drain.begun, drain.closing) == (True, True, False)
