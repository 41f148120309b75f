"""Tokens of an issuer at the doors: they open them as keys do, for their tenant, with their scopes, until they end."""

from __future__ import annotations

import time
from typing import Any

import jwt
import pytest

from gateway.settings import Settings
from orchestrator.engine import Submission
from orchestrator.runs import Principal
from orchestrator.store.database import StoreUnavailable
from tests.gateway.http.native import TASKS, bearer, begin

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    issuer = {"issuer": "i", "audience": "a", "secret": SECRET, "scopes_claim": "scope", "leeway_s": 0}
    keys = [{"key": "sk-a", "name": "alice", "tenant": "acme"}]
    return await serve(Settings.model_validate({"auth": {"mode": "keys", "keys": keys, "jwt": issuer}}), engine)


def token(tenant: str = "acme", scope: str = "runs:read", lives_s: int = 60) -> str:
    said = {"iss": "i", "aud": "a", "sub": "carol", "tenant": tenant, "scope": scope, "exp": int(time.time()) + lives_s}
    return jwt.encode(said, SECRET, "HS256")


async def test_a_token_is_good_for_its_tenant_and_scopes(server: Any) -> None:
    run_id = await begin(server, "say 1 words")
    assert (await server.ask("GET", f"{TASKS}/{run_id}", headers=bearer(token()))).status == 200
    assert (await server.ask("GET", f"{TASKS}/{run_id}", headers={"X-API-Key": token()})).status == 200
    assert (await server.ask("GET", f"{TASKS}/{run_id}", headers=bearer(token("other")))).status == 404
    refused = await server.ask("POST", f"{TASKS}/{run_id}/cancel", headers=bearer(token()))
    assert (refused.status, refused.json["error"]["code"]) == (403, "insufficient_scope")
    expired = await server.ask("GET", TASKS, headers=bearer(token(lives_s=-1)))
    unknown = await server.ask("GET", TASKS, headers=bearer("sk-wrong", **{"x-request-id": expired.headers["x-request-id"]}))
    assert (expired.status, expired.body) == (401, unknown.body)


async def test_a_token_that_ends_takes_its_stream_with_it(server: Any, engine: Any) -> None:
    run = await engine.submit(
        Principal("acme", "alice"), Submission("headgate-demo", {"messages": [{"role": "user", "content": "/script\nhang"}]})
    )
    short = token(lives_s=2)
    ends = time.time() + 2
    answer = await server.ask("GET", f"/api/v1/stream/sse?workflow_id={run.id}", headers=bearer(short))
    assert time.time() - ends < 1
    assert b'"code":"access_ended"' in answer.body
    assert b"event: done" not in answer.body
    await engine.cancel(Principal("acme", "alice"), run.id)


class Away:
    async def find(self, prefix: str) -> Any:
        raise StoreUnavailable


async def test_while_the_database_is_away_nobody_is_told_that_a_key_is_wrong(server: Any, engine: Any) -> None:
    engine._store.keys = Away()
    unknown = await server.ask("GET", TASKS, headers=bearer("sk-hg-" + "A" * 43))
    assert (unknown.status, unknown.json["error"]["code"]) == (503, "keys_unavailable")
    assert (unknown.headers["retry-after"], unknown.headers["retry-after-ms"]) == ("1", "1000")
    for good in ("sk-a", token()):
        assert (await server.ask("GET", "/v1/models", headers=bearer(good))).status == 200
    assert (await server.ask("GET", TASKS, headers=bearer("malformed"))).status == 401
