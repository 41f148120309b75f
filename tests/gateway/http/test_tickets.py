"""Stream tickets over real sockets: what they open, and all that they do not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gateway.settings import Settings
from tests.gateway.http.native import MISSING, NOT_IDS, TASKS, assert_error, bearer, settings
from tests.gateway.http.sockets import Client, handshake
from tests.gateway.http.streams import SSE, WS, Stage

TICKETS = "/api/v1/stream/tickets"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


@pytest.fixture
async def stage(server: Any, engine: Any) -> Stage:
    return await Stage.open(server, engine)


async def ticket(server: Any, key: str = "sk-a", **body: Any) -> str:
    answer = await server.ask("POST", TICKETS, headers=bearer(key), json=body)
    assert answer.status == 200, answer
    return str(answer.json["ticket"])


async def test_what_is_given(server: Any, stage: Stage) -> None:
    for options in ({}, {"json": {}}, {"json": {"workflow_id": None}}, {"json": {"workflow_id": stage.id}}):
        answer = await server.ask("POST", TICKETS, headers=bearer(), **options)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert set(answer.json) == {"ticket", "expires_at"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.json["expires_at"])
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", answer.json["ticket"])


async def test_it_opens_streams_without_a_key(server: Any, stage: Stage) -> None:
    await stage.complete()
    for one in (await ticket(server), await ticket(server, workflow_id=stage.id)):
        answer = await server.ask("GET", f"{SSE}?workflow_id={stage.id}&ticket={one}")
        assert answer.body.endswith(b"data: [DONE]\n\n")
        async with server.http.ws_connect(f"{server.url}{WS}?workflow_id={stage.id}&ticket={one}") as socket:
            assert (await Client(socket).rest())[-1]["type"] == "STREAM_END"


async def test_it_opens_nothing_else(server: Any) -> None:
    one = await ticket(server)
    for method, path in [("GET", TASKS), ("POST", TASKS), ("POST", TICKETS), ("GET", "/v1/models"), ("GET", "/metrics")]:
        answer = await server.ask(method, f"{path}?ticket={one}")
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key"), path


async def test_it_is_on_behalf_of_whoever_asked(server: Any, stage: Stage) -> None:
    one = await ticket(server, "sk-b")
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={stage.id}&ticket={one}"), 404, "run_not_found")


async def test_one_for_a_run_is_for_that_run(server: Any, engine: Any, stage: Stage) -> None:
    other = await Stage.open(server, engine)
    one = await ticket(server, workflow_id=stage.id)
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={other.id}&ticket={one}"), 404, "run_not_found")
    (answer,) = await server.raw(handshake(other.id, query=f"&ticket={one}"), first=True)
    assert_error(answer, 404, "run_not_found")
    async with server.http.ws_connect(f"{server.url}{WS}?workflow_id={stage.id}&ticket={one}") as socket:
        client = Client(socket)
        for op in ("subscribe", "cancel", "pause"):
            assert (await client.answered(op=op, workflow_id=other.id))["error"]["code"] == "run_not_found"
        assert (await client.answered(op="cancel"))["ok"]


@pytest.mark.parametrize("spoilt", ["", "x", "{}x", "x{}", "{}&ticket={}", "%00", "{}%0a", "%ff", "x" * 20_000])
async def test_any_other_is_the_401_of_a_wrong_key(server: Any, stage: Stage, spoilt: str) -> None:
    one = spoilt.replace("{}", await ticket(server))
    wrong_key = await server.ask("GET", f"{SSE}?workflow_id={stage.id}", headers=bearer("wrong", **{"x-request-id": "same"}))
    for path in (SSE, WS):
        answer = await server.ask("GET", f"{path}?workflow_id={stage.id}&ticket={one}", headers={"x-request-id": "same"})
        assert_error(answer, 401, "invalid_api_key")
        assert answer.body == wrong_key.body


@pytest.mark.parametrize("header", [bearer(), bearer("wrong"), {"X-API-Key": "sk-a"}])
async def test_a_key_or_a_ticket_but_not_both(server: Any, stage: Stage, header: dict[str, str]) -> None:
    """It must be clear on whose behalf a request comes."""
    path = f"{SSE}?workflow_id={stage.id}&ticket={await ticket(server)}"
    assert_error(await server.ask("GET", path, headers=header), 401, "invalid_api_key")


@pytest.mark.parametrize("given", [MISSING, *(name for name in NOT_IDS if "%" not in name)])
async def test_there_is_none_for_a_run_that_one_cannot_see(server: Any, given: str) -> None:
    answer = await server.ask("POST", TICKETS, headers=bearer(), json={"workflow_id": given})
    assert_error(answer, 404, "run_not_found")


async def test_nor_for_a_foreign_one(server: Any, stage: Stage) -> None:
    answer = await server.ask("POST", TICKETS, headers=bearer("sk-b"), json={"workflow_id": stage.id})
    assert_error(answer, 404, "run_not_found")


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[]", 400), (b'{"workflow_id":1}', 422), (b'{"run":"x"}', 422)])
async def test_bodies_that_cannot_be_meant(server: Any, body: bytes, status: int) -> None:
    headers = bearer(**{"Content-Type": "application/json"})
    assert_error(await server.ask("POST", TICKETS, headers=headers, data=body), status)


async def test_replicas_with_the_same_keys_honour_each_others(serve: Any, engine: Any) -> None:
    first, second = await serve(settings(), engine), await serve(settings(), engine)
    secretive = await serve(settings(auth={**settings().model_dump()["auth"], "ticket_secret": "0123456789abcdef"}), engine)
    stage = await Stage.open(first, engine)
    await stage.complete()
    path = f"{SSE}?workflow_id={stage.id}&ticket={await ticket(first)}"
    assert (await second.ask("GET", path)).status == 200
    assert_error(await secretive.ask("GET", path), 401, "invalid_api_key")


async def test_where_no_key_is_needed_a_ticket_is_not_either_but_one_that_is_given_counts(serve: Any, engine: Any) -> None:
    server = await serve(Settings.model_validate({}), engine)
    answer = await server.ask("POST", TASKS, json={"query": "/script\nsay 1 words", "model": "patient"})
    task = answer.json["task_id"]
    given = (await server.ask("POST", TICKETS, json={"workflow_id": task})).json["ticket"]
    assert (await server.ask("GET", f"{SSE}?workflow_id={task}")).status == 200
    assert (await server.ask("GET", f"{SSE}?workflow_id={task}&ticket={given}")).status == 200
    assert_error(await server.ask("GET", f"{SSE}?workflow_id={task}&ticket=x"), 401)
