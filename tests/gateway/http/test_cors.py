"""Pages in browsers: which may read our answers, what they may send, and what they cannot do without asking. All routes alike."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.access.browsers import REQUEST_HEADERS
from tests.gateway.http.native import TASKS, bearer, begin, settings

PAGE = "https://app.example.com"
STRANGER = "https://evil.example.com"
CHAT = "/v1/chat/completions"
SDK = "authorization,content-type,openai-organization,openai-project,x-stainless-arch, X-Stainless-Tomorrow"
CORS = ("access-control-", "vary")
NO_KEYS = {"auth": {"mode": "off", "keys": []}}


def asking(origin: str, *, method: str = "POST", headers: str = SDK) -> dict[str, str]:
    """A browser's question, which has no key."""
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


def told(answer: Any) -> dict[str, str]:
    """What an answer says to browsers about pages."""
    return {name: value for name, value in answer.headers.items() if name.startswith(CORS)}


async def listing(serve: Any, engine: Any, *origins: str, **sections: Any) -> Any:
    return await serve(settings(server={"origins": list(origins)}, **sections), engine)


async def test_every_route_answers_preflights_without_a_key(serve: Any, engine: Any) -> None:
    server = await listing(serve, engine, PAGE)
    paths = {route.resource.canonical.replace("{id}", "x").replace("{id:.+}", "x") for route in server.app.router.routes()}
    assert {CHAT, TASKS, "/api/v1/stream/sse", "/v1/models"} <= paths
    for path in sorted(paths | {"/no/such/route"}):
        answer = await server.ask("OPTIONS", path, headers=asking(PAGE))
        assert (answer.status, answer.body) == (204, b""), path
        names = told(answer)
        assert names.pop("access-control-expose-headers")
        assert names == {
            "access-control-allow-origin": PAGE,
            "access-control-allow-credentials": "true",
            "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
            "access-control-allow-headers": ", ".join((*REQUEST_HEADERS, "x-stainless-tomorrow")),
            "access-control-max-age": "600",
            "vary": "Origin",
        }, path


async def test_a_strangers_preflight_permits_nothing(serve: Any, engine: Any) -> None:
    answer = await (await listing(serve, engine, PAGE)).ask("OPTIONS", CHAT, headers=asking(STRANGER))
    assert (answer.status, told(answer)) == (204, {"vary": "Origin"})


@pytest.mark.parametrize("names", ["x-evil", "x-stainless-", "x-stainless-a\tb", "x-stainless-" + "a" * 99, "cookie", "*"])
async def test_headers_that_nobody_needs_are_not_allowed(serve: Any, engine: Any, names: str) -> None:
    answer = await (await listing(serve, engine, PAGE)).ask("OPTIONS", CHAT, headers=asking(PAGE, headers=names))
    assert answer.headers["access-control-allow-headers"] == ", ".join(REQUEST_HEADERS)


async def test_options_that_is_no_question_of_a_browser_is_a_method_like_any_other(serve: Any, engine: Any) -> None:
    server = await listing(serve, engine, PAGE)
    assert (await server.ask("OPTIONS", CHAT, headers=bearer())).status == 405
    assert (await server.ask("OPTIONS", CHAT, headers=bearer(Origin=PAGE))).status == 405


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models", 200), ("GET", "/health", 200), ("GET", "/nothing", 404), ("POST", CHAT, 415), ("PUT", CHAT, 405)],
)
async def test_answers_and_errors_can_be_read_by_listed_pages_only(
    serve: Any, engine: Any, method: str, path: str, status: int
) -> None:
    server = await listing(serve, engine, PAGE)
    for origin, readable in ((PAGE, True), (STRANGER, False), ("null", False)):
        answer = await server.ask(method, path, headers=bearer(Origin=origin), data=b"x" if method == "POST" else None)
        assert (answer.status, answer.headers["vary"]) == (status, "Origin")
        assert answer.headers.get("access-control-allow-origin") == (origin if readable else None)
        exposed = answer.headers.get("access-control-expose-headers", "").split(", ")
        assert ({"x-request-id", "x-workflow-id", "retry-after", "retry-after-ms"} <= set(exposed)) is readable


@pytest.mark.parametrize("origin", [PAGE, STRANGER])
async def test_streams_are_read_by_listed_pages_only(serve: Any, engine: Any, origin: str) -> None:
    server = await listing(serve, engine, PAGE)
    asked = {"model": "headgate-demo", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    run = await begin(server, "say 2 words")
    answers = [
        await server.ask("GET", f"/api/v1/stream/sse?workflow_id={run}", headers=bearer(Origin=origin)),
        await server.ask("POST", CHAT, headers=bearer(Origin=origin), json=asked),
    ]
    for answer in answers:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None)
        assert answer.headers["vary"] == "Origin"


async def test_a_refused_key_can_be_read_too(serve: Any, engine: Any) -> None:
    answer = await (await listing(serve, engine, PAGE)).ask("GET", "/v1/models", headers={"Origin": PAGE})
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_a_star_is_every_page_and_no_credentials(serve: Any, engine: Any) -> None:
    server = await listing(serve, engine, PAGE, "*")
    for headers in (asking(STRANGER), asking(PAGE)):
        names = told(await server.ask("OPTIONS", CHAT, headers=headers))
        assert names["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in names
    names = told(await server.ask("GET", "/v1/models", headers=bearer(Origin=STRANGER)))
    assert set(names) == {"access-control-allow-origin", "access-control-expose-headers"}


async def test_programs_with_a_browser_inside_can_be_listed(serve: Any, engine: Any) -> None:
    server = await listing(serve, engine, "vscode-webview://abc", **NO_KEYS)
    for origin, status in (("vscode-webview://abc", 400), ("vscode-webview://other", 403), ("null", 403)):
        answer = await server.ask("POST", CHAT, headers={"Origin": origin}, data=b"{}", skip_auto_headers=["Content-Type"])
        assert answer.status == status


async def test_without_a_list_nothing_is_said(serve: Any, engine: Any) -> None:
    answer = await (await listing(serve, engine)).ask("GET", "/v1/models", headers=bearer(Origin=PAGE))
    assert (answer.status, told(answer)) == (200, {})


async def test_two_origins_are_nobody(serve: Any, engine: Any) -> None:
    server = await listing(serve, engine, PAGE)
    lines = f"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: {PAGE}\r\nOrigin: {PAGE}\r\n\r\n"
    (answer,) = await server.raw(lines.encode())
    assert told(answer) == {"vary": "Origin"}


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("POST", TASKS), ("DELETE", "/api/v1/sessions/x")])
async def test_where_no_key_is_needed_a_strangers_page_cannot_act(serve: Any, engine: Any, method: str, path: str) -> None:
    """A page may send a POST without a type to any server, and no browser asks beforehand: it would start runs on a developer's
    own gateway, at the developer's cost.
    """
    server = await listing(serve, engine, PAGE, **NO_KEYS)
    answer = await server.ask(method, path, headers={"Origin": STRANGER}, skip_auto_headers=["Content-Type"], data=b"{}")
    assert (answer.status, answer.json["error"]["code"]) == (403, "origin_not_allowed")
    rebound = {"Origin": "http://evil.example.com", "Host": "evil.example.com"}
    assert (await server.ask(method, path, headers=rebound, data=b"{}")).status == 421
    for origin in (PAGE, server.url):
        assert (await server.ask(method, path, headers={"Origin": origin}, data=b"{}")).status != 403
    assert (await server.ask(method, path, data=b"{}")).status != 403
