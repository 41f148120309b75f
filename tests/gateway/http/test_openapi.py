"""The description of the API: complete, valid, and true of what the routes really answer."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.access.rules import Access
from gateway.settings import Settings

KEYS = {"auth": {"mode": "keys", "keys": [{"key": "sk-a", "name": "alice", "tenant": "acme"}]}}
BEARER = {"Authorization": "Bearer sk-a"}


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(Settings.model_validate(KEYS), engine)


@pytest.fixture
async def document(server: Any) -> Any:
    answer = await server.ask("GET", "/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return answer.json


def operations(document: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def plain(canonical: str) -> str:
    return re.sub(r"\{(\w+):[^}]*\}", r"{\1}", canonical)


async def test_every_route_is_in_it_and_nothing_else(server: Any, document: Any) -> None:
    """Enumerates what aiohttp would serve, not what we believe we registered."""
    served = {(route.method, plain(route.resource.canonical)) for route in server.app.router.routes()}
    assert {(method, path) for method, path, _ in operations(document)} == served


async def test_it_is_valid_openapi_3_1(document: Any) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


async def test_everything_has_words(document: Any) -> None:
    tags = {tag["name"] for tag in document["tags"]}
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert set(operation["tags"]) <= tags, where
        assert {each["name"] for each in operation.get("parameters", []) if each["in"] == "path"} == set(
            re.findall(r"\{(\w+)\}", path)
        ), where
        assert all(reply["description"] for reply in operation["responses"].values()), where


async def test_a_key_is_asked_for_exactly_where_the_rule_says_so(server: Any, document: Any) -> None:
    rules = {(route.method, plain(route.resource.canonical)): server.access[route] for route in server.app.router.routes()}
    for method, path, operation in operations(document):
        schemes = [next(iter(each)) for each in operation["security"]]
        scope = rules[method, path].scope
        assert [scopes for each in operation["security"] for scopes in each.values() if scopes] == [[scope]] * (
            len(schemes) if scope else 0
        )
        assert ("403" in operation["responses"]) >= (scope is not None), (method, path)
        if rules[method, path] is Access.ANYBODY:
            assert schemes == [], (method, path)
        else:
            assert schemes[:2] == ["bearer", "apiKey"], (method, path)
            assert "401" in operation["responses"], (method, path)


async def test_errors_are_described_in_the_envelope_of_their_door(document: Any) -> None:
    for method, path, operation in operations(document):
        envelope = "NativeError" if path.startswith("/api/") else "OpenAIError"
        described = [reply for status, reply in operation["responses"].items() if status[0] == "4" or status == "default"]
        assert described, (method, path)
        for reply in described:
            assert reply["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{envelope}"}


async def test_examples_of_bodies_are_valid_bodies(document: Any) -> None:
    schemas = document["components"]["schemas"]
    examined = 0
    for name, schema in schemas.items():
        for example in schema.get("examples", []):
            Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": document["components"]}).validate(example)
            examined += 1
    assert examined >= 4


ASK = {"model": "headgate-demo", "messages": [{"role": "user", "content": 'say "hi"'}]}
TASK = {"query": '/script\nsay "hi"', "model": "headgate-demo", "session_id": "s-1"}


async def test_what_the_routes_answer_is_what_it_says(server: Any, document: Any) -> None:
    """Every operation that can be had without waiting for somebody, asked for real; the answers held against their schemas."""
    task = (await server.ask("POST", "/api/v1/tasks", headers=BEARER, json=TASK)).json["task_id"]
    chat = (await server.ask("POST", "/v1/chat/completions", headers=BEARER, json=ASK)).json["id"]
    asked: list[tuple[str, str, str, dict[str, Any]]] = [
        ("POST", "/v1/chat/completions", "/v1/chat/completions", {"json": ASK}),
        ("GET", "/v1/chat/completions/{id}", f"/v1/chat/completions/{chat}", {}),
        ("GET", "/v1/models", "/v1/models", {}),
        ("GET", "/v1/models/{id}", "/v1/models/durable", {}),
        ("GET", "/v1/models/{id}", "/v1/models/nobody", {}),
        ("POST", "/api/v1/tasks", "/api/v1/tasks", {"json": TASK}),
        ("POST", "/api/v1/tasks/stream", "/api/v1/tasks/stream", {"json": TASK}),
        ("GET", "/api/v1/tasks", "/api/v1/tasks", {}),
        ("GET", "/api/v1/tasks/{id}", f"/api/v1/tasks/{task}", {}),
        ("GET", "/api/v1/tasks/{id}", f"/api/v1/tasks/task-{'0' * 32}", {}),
        ("GET", "/api/v1/tasks/{id}/events", f"/api/v1/tasks/{task}/events", {}),
        ("GET", "/api/v1/tasks/{id}/timeline", f"/api/v1/tasks/{task}/timeline", {}),
        ("GET", "/api/v1/tasks/{id}/control-state", f"/api/v1/tasks/{task}/control-state", {}),
        ("POST", "/api/v1/tasks/{id}/cancel", f"/api/v1/tasks/{task}/cancel", {}),
        ("GET", "/api/v1/approvals", "/api/v1/approvals", {}),
        ("GET", "/api/v1/sessions", "/api/v1/sessions", {}),
        ("GET", "/api/v1/sessions/{id}", "/api/v1/sessions/s-1", {}),
        ("GET", "/api/v1/sessions/{id}/history", "/api/v1/sessions/s-1/history", {}),
        ("GET", "/api/v1/sessions/{id}/events", "/api/v1/sessions/s-1/events", {}),
        ("PATCH", "/api/v1/sessions/{id}", "/api/v1/sessions/s-1", {"json": {"title": "x"}}),
        ("GET", "/health", "/health", {}),
        ("GET", "/readiness", "/readiness", {}),
    ]
    for method, path, url, options in asked:
        answer = await server.ask(method, url, headers=BEARER, **options)
        responses = document["paths"][path][method.lower()]["responses"]
        assert str(answer.status) in responses, (method, path, answer)
        schema = responses[str(answer.status)]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json)


# The page


async def test_the_page_needs_nothing_from_elsewhere_and_runs_only_its_own_script(server: Any) -> None:
    answer = await server.ask("GET", "/docs")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = answer.body.decode()
    assert re.findall(r"""(?:src|href)=["']?([^"'>]*)""", page) == ["openapi.json"]
    assert not re.search(r"https?://|@import|\burl\(|innerHTML", page)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy


async def test_the_page_asks_for_the_document_beside_it(server: Any) -> None:
    """Relative, so that it works behind a proxy that gives the server a path of its own."""
    assert b'fetch("openapi.json")' in (await server.ask("GET", "/docs")).body


async def test_the_address_by_itself_leads_to_the_page(server: Any) -> None:
    answer = await server.ask("GET", "/", allow_redirects=False)
    assert (answer.status, answer.headers["location"]) == (307, "docs")
