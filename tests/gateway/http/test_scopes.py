"""Every route, driven as somebody who may not: without its scope, and as another tenant. A route that is added is driven too."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from aiohttp import web

from gateway.access.rules import Access
from gateway.routes.route import Route
from gateway.settings import Settings
from orchestrator.engine import Submission
from orchestrator.keys import mint
from orchestrator.runs import EVERYDAY, Principal, Scope
from tests.gateway.http.native import bearer

ACME = Principal("acme", "alice")
MISSING_RUN, MISSING_SESSION, MISSING_KEY = "task-" + "0" * 32, "nobodys", "key_" + "0" * 24
NOBODYS = {"POST /v1/chat/completions", "GET /v1/models/{id}"}
"""Routes whose names are no tenant's own."""


def routes(server: Any) -> Iterable[tuple[str, str, Access]]:
    """What aiohttp would serve, with its rule."""
    for route in server.app.router.routes():
        yield route.method, route.resource.canonical, server.access[route]


def key_for(scopes: Iterable[Scope]) -> str:
    return "sk-" + "-".join(sorted(scope.name.lower() for scope in scopes))


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    sets = {frozenset({scope}) for scope in Scope} | {EVERYDAY - {scope} for scope in EVERYDAY} | {EVERYDAY, frozenset[Scope]()}
    keys = [
        {"key": key_for(scopes), "name": f"acme-{number}", "tenant": "acme", "scopes": sorted(scopes)}
        for number, scopes in enumerate(sets)
    ]
    keys += [{"key": "sk-b", "name": "bob", "tenant": "other", "scopes": ["admin"]}]
    return await serve(Settings.model_validate({"auth": {"mode": "keys", "keys": keys}}), engine)


def described(path: str, run: str, session: str, key: str) -> str:
    """The path with a name in it, and what other routes have in the query."""
    named = session if "/sessions/" in path else key if "/auth/keys/" in path else run
    query = f"?workflow_id={named}&workflow_ids={named}" if "/stream/" in path else ""
    return path.replace("{id}", named).replace("{id:.+}", "headgate-demo") + query


def body(path: str, run: str) -> dict[str, Any]:
    """What a route takes that takes a body."""
    match path:
        case "/api/v1/approvals/decision":
            return {"workflow_id": run, "approval_id": "a", "approved": True}
        case "/api/v1/stream/tickets":
            return {"workflow_id": run}
        case "/api/v1/sessions/{id}":
            return {"title": "t"}
        case _:
            return {}


async def test_every_route_that_wants_a_key_wants_a_scope(server: Any) -> None:
    assert {path for _, path, rule in routes(server) if rule.scope is None} == {
        *("/", "/docs", "/health", "/readiness", "/openapi.json"),
        "/metrics",  # numbers about the process, for whoever has a key
    }
    assert not [path for _, path, rule in routes(server) if rule is Access.INTERNAL]


async def test_without_its_scope_a_route_is_forbidden_and_says_what_it_takes(server: Any) -> None:
    """Whatever is in the path and the body, and with every other scope that there is, short of `admin`."""
    for method, path, rule in routes(server):
        if (scope := rule.scope) is None:
            continue
        where = described(path, MISSING_RUN, MISSING_SESSION, MISSING_KEY)
        for key in (key_for(EVERYDAY - {scope}), key_for(())):
            answer = await server.ask(method, where, headers=bearer(key), data=b"{" if method != "GET" else None)
            assert (answer.status, answer.json["error"]["code"]) == (403, "insufficient_scope"), (method, path)
            assert f"'{scope}'" in answer.json["error"]["message"]
            assert answer.headers["www-authenticate"] == f'Bearer error="insufficient_scope", scope="{scope}"'


async def test_its_scope_alone_is_enough_and_so_is_admin(server: Any) -> None:
    for method, path, rule in routes(server):
        if (scope := rule.scope) is None:
            continue
        where = described(path, MISSING_RUN, MISSING_SESSION, MISSING_KEY)
        for key in {key_for({scope}), key_for({Scope.ADMIN})}:
            answer = await server.ask(method, where, headers=bearer(key), json=body(path, MISSING_RUN))
            assert answer.status not in (401, 403, 500), (method, path, answer)


async def test_another_tenants_anything_is_a_missing_one(server: Any, engine: Any) -> None:
    """As `other`, with every scope: each route with a name in it answers the very bytes that it answers for what never was."""
    request = {"messages": [{"role": "user", "content": "/script\nhang"}]}
    run = await engine.submit(ACME, Submission("headgate-demo", request, session_id="acmes"))
    key = await engine.create_key(ACME, mint(lambda count: b"k" * count)[1], "acmes")
    driven = 0
    for method, path, rule in routes(server):
        if rule.scope is None or f"{method} {path}" in NOBODYS:
            continue
        own = (run.id, "acmes", key.id)
        missing = (MISSING_RUN, MISSING_SESSION, MISSING_KEY)
        if described(path, *own) == described(path, *missing) and body(path, own[0]) == body(path, missing[0]):
            continue
        answers = [
            await server.ask(
                method,
                described(path, *names),
                headers=bearer("sk-b", **{"x-request-id": "same"}) | _upgrade(path),
                json=body(path, names[0]) or None,
            )
            for names in (own, missing)
        ]
        heads = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
        assert answers[0].status == 404, (method, path, answers[0])
        assert answers[0].body == answers[1].body, (method, path)
        assert heads[0] == heads[1], (method, path)
        assert not [name for name in own if name.encode() in answers[0].body]
        driven += 1
    assert driven >= 20
    assert (await engine.get(ACME, run.id)).state.value == "RUNNING", "nobody but its tenant touched it"
    await engine.cancel(ACME, run.id)


def _upgrade(path: str) -> dict[str, str]:
    if not path.endswith("/ws"):
        return {}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    return {"Connection": "Upgrade", "Upgrade": "websocket", **key}


@pytest.mark.parametrize(("op", "scope"), [
    ({"op": "cancel"}, Scope.RUNS_WRITE),
    ({"op": "pause"}, Scope.RUNS_WRITE),
    ({"op": "resume"}, Scope.RUNS_WRITE),
    ({"op": "approve", "approval_id": "a", "approved": True}, Scope.APPROVALS_DECIDE),
    ({"op": "subscribe"}, Scope.RUNS_READ),
    ({"op": "unsubscribe"}, Scope.RUNS_READ),
])  # fmt: skip
async def test_operations_of_a_socket_take_the_scopes_of_their_routes(server: Any, engine: Any, op: Any, scope: Scope) -> None:
    run = await engine.submit(ACME, Submission("headgate-demo", {"messages": [{"role": "user", "content": "/script\nhang"}]}))
    for scopes in ({Scope.RUNS_READ}, {Scope.RUNS_READ, scope}):
        key = key_for(scopes) if scopes == {Scope.RUNS_READ} else key_for(EVERYDAY)
        url = f"{server.url}/api/v1/stream/ws?workflow_id={run.id}"
        async with server.http.ws_connect(url, headers=bearer(key)) as socket:
            await socket.send_json(op)
            while "op" not in (said := json.loads((await socket.receive(timeout=5)).data)):
                pass
        refused = not said["ok"] and said["error"]["code"] == "insufficient_scope"
        assert refused == (scope not in scopes), said
    await engine.cancel(ACME, run.id)


async def test_a_route_cannot_be_written_without_a_rule() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        raise AssertionError

    with pytest.raises(TypeError):
        Route("GET", "/x", handler=handler)  # type: ignore[call-arg]
