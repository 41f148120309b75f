"""Everything that happens to a request before a run exists: routes, keys, bodies, framing. Over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.settings import Settings

KEY = "sk-test-0123456789abcdef"
CHAT = "/v1/chat/completions"
ASK = {"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}]}

OPEN = {"GET /", "GET /health", "GET /readiness", "GET /docs", "GET /openapi.json"}


def with_keys(**server: Any) -> Settings:
    return Settings.model_validate(
        {"auth": {"mode": "keys", "keys": [{"key": KEY, "name": "alice", "tenant": "acme"}]}, "server": server}
    )


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(with_keys(max_body_bytes=4096), engine)


def authorised(**headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", **headers}


def assert_envelope(answer: Any, status: int, code: str | None = None, *, native: bool = False) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json["error"]
    assert set(error) == ({"code", "message", "request_id"} if native else {"message", "type", "param", "code"})
    assert error["message"]
    assert code is None or error["code"] == code


# Routes


async def test_every_route_declares_who_may_call_it(server: Any) -> None:
    """Enumerates what aiohttp would serve, not what we believe we registered."""
    rules = {f"{route.method} {route.resource.canonical}": server.access.get(route) for route in server.app.router.routes()}
    assert {name for name, rule in rules.items() if rule is None} == set()
    assert {name for name, rule in rules.items() if rule.value == "anybody"} == OPEN


async def test_every_route_but_the_open_ones_wants_a_key(server: Any) -> None:
    for route in server.app.router.routes():
        path = route.resource.canonical.replace("{id}", "task-" + "0" * 32).replace("{id:.+}", "x")
        answer = await server.ask(route.method, path)
        if f"{route.method} {route.resource.canonical}" in OPEN:
            assert answer.status == 200
        else:
            assert_envelope(answer, 401, "invalid_api_key", native=path.startswith("/api/"))


@pytest.mark.parametrize("path", ["/api/", "/api/v1", "/api/v1/nothing", "/api/v2/tasks"])
async def test_the_native_api_has_its_own_envelope(server: Any, path: str) -> None:
    answer = await server.ask("GET", path, headers=authorised(**{"x-request-id": "mine"}))
    assert (answer.status, answer.headers["content-type"]) == (404, "application/json")
    message = "There is no such route. `GET /docs` shows those that there are."
    error = {"code": "route_not_found", "message": message, "request_id": "mine"}
    assert answer.json == {"error": error}


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/embeddings", "/v1/chat", "/nothing", "/v1/chat/completions/"])
async def test_unknown_routes_are_a_json_404(server: Any, path: str) -> None:
    assert_envelope(await server.ask("GET", path, headers=authorised()), 404, "route_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("OPTIONS", CHAT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", f"{CHAT}/task-{'0' * 32}", "GET"),
        ("POST", "/health", "GET"),
    ],
)
async def test_wrong_methods_are_a_json_405_that_names_the_right_one(server: Any, method: str, path: str, allow: str) -> None:
    answer = await server.ask(method, path, headers=authorised())
    assert_envelope(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == allow


async def test_head_has_no_body_and_leaves_the_connection_usable(server: Any) -> None:
    first, second = await server.raw(
        b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        head_first=True,
    )
    assert (first.status, first.body) == (405, b"")
    assert (second.status, second.json) == (200, {"status": "ok"})


# Request ids


@pytest.mark.parametrize("sent", ["abc-1_2.3", "x" * 128])
async def test_a_sane_request_id_comes_back(server: Any, sent: str) -> None:
    assert (await server.ask("GET", "/health", headers={"x-request-id": sent})).headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "ä", 'a"b', "a;b"])
async def test_any_other_request_id_is_replaced(server: Any, sent: str) -> None:
    given = (await server.ask("GET", "/health", headers={"x-request-id": sent})).headers["x-request-id"]
    assert given.startswith("req-")
    assert len(given) == 28


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", "Bearer wrong")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY} {KEY}")],
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
        [("Authorization", f"Bearer {KEY}"), ("X-API-Key", KEY)],
        [("X-API-Key", "")],
        [("X-API-Key", KEY.upper())],
        [("X-API-Key", f"{KEY},{KEY}")],
        [("Authorization", "Bearer \xff\xfe")],
        [("Authorization", "Bearer " + "k" * 60_000)],
    ],
)
async def test_all_bad_keys_get_one_and_the_same_401(server: Any, headers: list[tuple[str, str]]) -> None:
    answer = await server.ask("POST", CHAT, headers=headers, data=b"not even read")
    assert_envelope(answer, 401, "invalid_api_key")
    assert answer.body == (await server.ask("GET", "/v1/models")).body


@pytest.mark.parametrize("name", ["X-API-Key", "x-api-key"])
async def test_a_key_by_itself_is_good(server: Any, name: str) -> None:
    assert (await server.ask("GET", "/v1/models", headers={name: KEY})).status == 200


@pytest.mark.parametrize("value", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY}"])
async def test_a_bearer_is_good_in_any_case(server: Any, value: str) -> None:
    assert (await server.ask("GET", "/v1/models", headers={"Authorization": value})).status == 200


@pytest.mark.parametrize("value", [b"Bearer \0", b"Bearer " + b"k" * 1_000_000])
async def test_keys_that_no_header_may_hold_are_refused_by_the_parser(server: Any, value: bytes) -> None:
    """Such a request cannot be parsed, so whether it has a key is not known either."""
    (answer,) = await server.raw(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: " + value + b"\r\n\r\n")
    assert_envelope(answer, 400 if b"\0" in value else 431)


async def test_the_key_is_checked_before_the_body_is_read(server: Any) -> None:
    """A stranger's upload is answered although its body never comes."""
    (answer,) = await server.raw(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4000\r\n\r\n".encode(), first=True
    )
    assert_envelope(answer, 401, "invalid_api_key")


# Bodies


@pytest.mark.parametrize(
    "content_type", ["text/plain", "multipart/form-data; boundary=x", "application/jsonx", "garbage", "a/b/c"]
)
async def test_other_content_types_are_a_415(server: Any, content_type: str) -> None:
    answer = await server.ask("POST", CHAT, headers=authorised(**{"Content-Type": content_type}), data=json.dumps(ASK))
    assert_envelope(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "x"])
async def test_compressed_bodies_are_a_415_and_not_inflated(server: Any, encoding: str) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in authorised(**{"Content-Encoding": encoding}).items())
    (answer,) = await server.raw(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}Content-Length: 2\r\n\r\n{{}}".encode(),
        first=True,
    )
    assert_envelope(answer, 415)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"[]",
        b"1",
        b"null",
        b'"text"',
        b"{}",
        b'{"model": "headgate-demo"}',
        b'{"model": "headgate-demo", "messages": []}',
        b'{"model": "headgate-demo", "messages": "hi"}',
        b'{"model": "headgate-demo", "messages": [1]}',
        b'{"model": "headgate-demo", "messages": [{"role": "user"}]}',
        b'{"model": "headgate-demo", "messages": [{"role": "nobody", "content": "hi"}]}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": {"a": 1}}]}',
        b'{"model": 5, "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}], "stream": "yes"}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}], "temperature": "hot"}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}], "n": 1e400}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "\\u0000"}]}',
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "\xff"}]}',
        b"\xef\xbb\xbf\xff",
        b"[" * 4000,
        b'{"a":' * 800,
        b'{"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}], "seed": ' + b"9" * 3000 + b"}",
    ],
)
async def test_malformed_bodies_are_a_400_and_start_nothing(server: Any, body: bytes) -> None:
    answer = await server.ask("POST", CHAT, headers=authorised(**{"Content-Type": "application/json"}), data=body)
    assert_envelope(answer, 400)
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert "x-workflow-id" not in answer.headers


@pytest.mark.parametrize("model", ["no-such-model", "a/b/c", "ä", "x" * 3000, "\u2028", "../../etc"])
async def test_an_unknown_model_is_a_404(server: Any, model: str) -> None:
    answer = await server.ask("POST", CHAT, headers=authorised(), json={**ASK, "model": model})
    assert_envelope(answer, 404, "model_not_found")
    assert answer.json["error"]["param"] == "model"
    assert "x-workflow-id" not in answer.headers


async def test_a_body_that_is_too_large_is_refused_by_its_length(server: Any) -> None:
    """The body never comes, and the answer does."""
    head = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n"
    (answer,) = await server.raw(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode(), first=True)
    assert_envelope(answer, 413, "body_too_large")


async def test_a_chunked_body_is_read_up_to_the_bound_and_no_further(server: Any) -> None:
    """5,000 bytes of an endless body are sent; the bound is 4,096."""
    head = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    (answer,) = await server.raw(
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()
        + b"3e8\r\n"
        + b"x" * 1000
        + b"\r\n"
        + b"1000\r\n"
        + b"x" * 4000,
        first=True,
    )
    assert_envelope(answer, 413, "body_too_large")


async def test_a_body_of_exactly_the_bound_is_read(server: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=authorised(**{"Content-Type": "application/json"}), data=b"x" * 4096)
    assert_envelope(answer, 400)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-5\r\n", b"5\r\nabc\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFFF\r\n"])
async def test_a_broken_chunked_body_is_a_400_and_closes(server: Any, chunk: bytes) -> None:
    head = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
    answers = await server.raw(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + chunk)
    assert_envelope(answers[0], 400)
    assert len(answers) == 1


async def test_expect_continue_is_answered_when_the_body_is_wanted(server: Any) -> None:
    head = f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: "
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}2\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("key", "length", "expect", "status"),
    [(KEY, 99999, "100-continue", 413), ("no", 2, "100-continue", 401), (KEY, 2, "tea", 417)],
)
async def test_expect_continue_is_not_answered_when_it_is_not(
    server: Any, key: str, length: int, expect: str, status: int
) -> None:
    head = f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\nExpect: {expect}\r\nContent-Length: {length}\r\n"
    (answer,) = await server.raw(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode(), first=True)
    assert_envelope(answer, status)


# Framing: what cannot be parsed reaches no handler


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n",
        b"GET /health HTTP/1.1\nHost: x\n\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\nhello",
        b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_not_http_gets_an_envelope_and_is_closed(server: Any, request_bytes: bytes) -> None:
    """The second, smuggled request reaches no handler: there is no second answer."""
    answers = await server.raw(request_bytes + b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(answers) == 1
    assert_envelope(answers[0], 400)
    assert b"smuggled" not in answers[0].body


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /health?" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_oversized_headers_get_an_envelope(server: Any, request_bytes: bytes) -> None:
    (answer,) = await server.raw(request_bytes)
    assert_envelope(answer, 431, "headers_too_large")
    assert b"aaaa" not in answer.body


async def test_headers_of_sixty_kilobytes_are_fine(server: Any) -> None:
    assert (await server.ask("GET", "/health", headers={"A": "a" * 60_000})).status == 200


# Health


async def test_health_and_metrics(server: Any) -> None:
    assert (await server.ask("GET", "/health")).json == {"status": "ok"}
    await server.ask("GET", "/v1/unknown-to-everybody")
    answer = await server.ask("GET", "/metrics", headers=authorised())
    assert answer.status == 200
    assert b'headgate_http_requests_total{method="GET",route="/health",status="200"} 1.0' in answer.body
    assert b'route="unmatched",status="404"' in answer.body
    assert b"unknown-to-everybody" not in answer.body


async def test_readiness_names_each_dependency(server: Any) -> None:
    answer = await server.ask("GET", "/readiness")
    assert answer.status == 200
    assert answer.json["status"] == "ready"
    assert set(answer.json["dependencies"]) == {"redis", "temporal", "postgres"}


async def test_a_draining_server_is_not_ready_and_takes_nothing_new(server: Any) -> None:
    server.drain.begin()
    ready = await server.ask("GET", "/readiness")
    assert (ready.status, ready.json["status"], ready.headers["connection"]) == (503, "draining", "close")
    answer = await server.ask("POST", CHAT, headers=authorised(), json=ASK)
    assert_envelope(answer, 503, "draining")
    assert answer.headers["retry-after"] == "1"


# Models


async def test_models(server: Any) -> None:
    listed = (await server.ask("GET", "/v1/models", headers=authorised())).json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]][:3] == ["headgate-demo", "durable", "patient"]
    assert all(set(model) == {"id", "object", "created", "owned_by"} for model in listed["data"])
    one = (await server.ask("GET", "/v1/models/headgate-demo", headers=authorised())).json
    assert one == listed["data"][0]


@pytest.mark.parametrize("name", ["nobody", "a/b", "a%2Fb", "%00", "%ff", "..", "x" * 5000])
async def test_unknown_models_are_a_404(server: Any, name: str) -> None:
    answer = await server.ask("GET", f"/v1/models/{name}", headers=authorised())
    assert_envelope(answer, 404)
