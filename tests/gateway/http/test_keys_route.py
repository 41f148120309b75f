"""Keys of a tenant over HTTP: made, listed, ended and replaced by those of its people who may, and good at once."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.settings import Settings
from tests.gateway.http.native import assert_error, bearer

KEYS = "/api/v1/auth/keys"
EVERYDAY = ["approvals:decide", "runs:execute-inline", "runs:read", "runs:write"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    keys = [
        {"key": "sk-a", "name": "alice", "tenant": "acme", "scopes": ["admin"]},
        {"key": "sk-b", "name": "bob", "tenant": "other", "scopes": ["admin"]},
    ]
    limits = {"key": {"requests_per_minute": 60, "budgets": {"day": {"usd": 5}}}}
    return await serve(Settings.model_validate({"auth": {"mode": "keys", "keys": keys}, "limits": limits}), engine)


async def made(server: Any, key: str = "sk-a", **body: Any) -> Any:
    answer = await server.ask("POST", KEYS, headers=bearer(key), json={"name": "ci", **body})
    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store"), answer
    return answer.json


async def listed(server: Any, key: str = "sk-a") -> Any:
    answer = await server.ask("GET", KEYS, headers=bearer(key))
    assert answer.status == 200
    return answer.json["keys"]


async def status(server: Any, key: str, path: str = "/v1/models") -> int:
    return int((await server.ask("GET", path, headers=bearer(key))).status)


async def test_what_is_made_is_shown_once_and_good_at_once(server: Any) -> None:
    key = await made(server)
    text = key.pop("key")
    assert re.fullmatch(r"sk-hg-[A-Za-z0-9_-]{43}", text)
    assert TIME.fullmatch(key.pop("created_at"))
    assert re.fullmatch(r"key_[0-9a-f]{24}", key["id"])
    ends = {"expires_at": None, "revoked_at": None, "last_used_at": None}
    about = {"id": key["id"], "name": "ci", "tenant": "acme", "prefix": text[:14], "scopes": EVERYDAY, "status": "active", **ends}
    assert key.pop("limits") is None
    assert key == about
    assert await status(server, text) == 200
    assert await status(server, text, KEYS) == 403
    assert [each["id"] for each in await listed(server)] == [key["id"]]
    assert text not in str(await listed(server))


async def test_limits_of_its_own_are_none_that_the_configuration_would_not_allow(server: Any) -> None:
    """Who hands out a tenant's keys could otherwise lift what the server's owner has limited."""
    wanted = {"requests_per_minute": 600, "runs": 2, "budgets": {"day": {"tokens": 1000, "usd": 50}}}
    limits = (await made(server, limits=wanted))["limits"]
    assert limits == (await listed(server))[0]["limits"]
    assert limits == {
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "runs": 2,
        "streams": None,
        "budgets": {"day": {"tokens": 1000, "usd": "5"}, "month": None},
    }
    answer = await server.ask("POST", KEYS, headers=bearer("sk-a"), json={"name": "ci", "limits": {"runs": 0}})
    assert_error(answer, 422)


async def test_scopes_and_an_end_are_what_was_asked_for(server: Any) -> None:
    key = await made(server, scopes=["runs:read", "admin", "runs:read"], expires_in_s=60)
    assert key["scopes"] == ["admin", "runs:read"]
    assert TIME.fullmatch(key["expires_at"])
    assert key["expires_at"] > key["created_at"]
    assert await status(server, key["key"], KEYS) == 200
    nothing = await made(server, scopes=[])
    assert await status(server, nothing["key"]) == 403


async def test_a_key_that_is_revoked_is_refused_like_one_that_never_was(server: Any) -> None:
    key = await made(server)
    assert await status(server, key["key"]) == 200
    for _ in range(2):
        answer = await server.ask("DELETE", f"{KEYS}/{key['id']}", headers=bearer())
        assert (answer.status, answer.json["status"]) == (200, "revoked")
    async with server.drain.until_closed(None):  # the ring looks at once, in a task of its own
        while await status(server, key["key"]) != 401:
            pass
    revoked = await server.ask("GET", "/v1/models", headers=bearer(key["key"]))
    never = await server.ask("GET", "/v1/models", headers=bearer("sk-hg-" + "A" * 43))
    malformed = await server.ask("GET", "/v1/models", headers=bearer("sk-hg-"))
    assert revoked.body == never.body == malformed.body
    assert [each["status"] for each in await listed(server)] == ["revoked"]


async def test_a_key_is_replaced_with_or_without_an_overlap(server: Any) -> None:
    first = await made(server, scopes=["runs:read"], expires_in_s=3600)
    answer = await server.ask("POST", f"{KEYS}/{first['id']}/rotate", headers=bearer(), json={"overlap_s": 60})
    second = answer.json
    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store")
    assert {name: second[name] for name in ("name", "tenant", "scopes", "status")} == {
        "name": "ci",
        "tenant": "acme",
        "scopes": ["runs:read"],
        "status": "active",
    }
    assert (second["replaces"]["id"], second["replaces"]["status"]) == (first["id"], "active")
    assert second["replaces"]["expires_at"] < first["expires_at"] <= second["expires_at"]
    assert await status(server, first["key"]) == await status(server, second["key"]) == 200
    third = (await server.ask("POST", f"{KEYS}/{second['id']}/rotate", headers=bearer())).json
    assert third["replaces"]["status"] == "revoked"
    again = await server.ask("POST", f"{KEYS}/{second['id']}/rotate", headers=bearer())
    assert_error(again, 409, "key_ended")


async def test_tenants_do_not_see_each_others(server: Any) -> None:
    key = await made(server)
    assert await listed(server, "sk-b") == []
    missing = "key_" + "0" * 24
    for method, path in (("DELETE", "{}"), ("POST", "{}/rotate")):
        refused = [
            await server.ask(method, f"{KEYS}/{path.format(each)}", headers=bearer("sk-b", **{"x-request-id": "r"}))
            for each in (key["id"], missing, "key_", "%00", "x" * 5000, key["prefix"])
        ]
        for each in refused:
            assert_error(each, 404, "key_not_found")
        assert len({each.body for each in refused}) == 1
    assert await status(server, key["key"]) == 200


@pytest.mark.parametrize("body", [
    {}, {"name": ""}, {"name": "a\n"}, {"name": "a" * 65}, {"name": 7}, {"name": "a", "scopes": ["root"]},
    {"name": "a", "scopes": "admin"}, {"name": "a", "expires_in_s": 0}, {"name": "a", "expires_in_s": 1 << 70},
    {"name": "a", "expires_in_s": 1.5}, {"name": "a", "tenant": "other"}, {"name": "a", "key": "mine"},
])  # fmt: skip
async def test_what_cannot_be_made_is_a_422(server: Any, body: Any) -> None:
    assert_error(await server.ask("POST", KEYS, headers=bearer(), json=body), 422)
    assert await listed(server) == []


@pytest.mark.parametrize("body", [{"overlap_s": -1}, {"overlap_s": 1 << 70}, {"overlap": 1}])
async def test_an_overlap_that_cannot_be_is_a_422(server: Any, body: Any) -> None:
    key = await made(server)
    assert_error(await server.ask("POST", f"{KEYS}/{key['id']}/rotate", headers=bearer(), json=body), 422)
    assert await status(server, key["key"]) == 200


@pytest.mark.parametrize("query", ["api_key", "key", "token", "access_token", "authorization", "x-api-key", "Authorization"])
async def test_a_key_in_the_query_is_not_looked_at(server: Any, query: str) -> None:
    key = (await made(server))["key"]
    for path in ("/v1/models", "/api/v1/tasks", "/api/v1/stream/sse", "/metrics"):
        answer = await server.ask("GET", f"{path}?{query}={key}")
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")


async def test_keys_are_made_where_nobody_needs_one(serve: Any, engine: Any) -> None:
    """Before auth is switched on, say."""
    server = await serve(Settings.model_validate({}), engine)
    answer = await server.ask("POST", KEYS, json={"name": "first"})
    assert (answer.status, answer.json["tenant"]) == (201, "default")
