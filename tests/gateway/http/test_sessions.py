"""Sessions: tasks that share an id, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pytest

from tests.gateway.http.native import TASKS, assert_error, assert_hidden, bearer, begin, settings
from tests.orchestrator.engines import until

SESSIONS = "/api/v1/sessions"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def get(server: Any, path: str = "", key: str = "sk-a") -> Any:
    return await server.ask("GET", SESSIONS + path, headers=bearer(key))


async def talk(server: Any, engine: Any, session_id: str, *texts: str, **fields: Any) -> list[str]:
    """One task after the other, each at a moment of its own."""
    tasks = []
    for text in texts:
        tasks.append(await begin(server, f'wait 2ms; say "{text}"', session_id=session_id, **fields))
        await until(engine, tasks[-1], "STREAM_END")
    return tasks


async def test_sessions_are_listed_the_latest_used_first(server: Any, engine: Any) -> None:
    await talk(server, engine, "s-1", "one", "two")
    await talk(server, engine, "s-2", "three")
    listed = (await get(server)).json
    assert (set(listed), listed["total_count"]) == ({"sessions", "total_count"}, 2)
    assert [(each["session_id"], each["task_count"]) for each in listed["sessions"]] == [("s-2", 1), ("s-1", 2)]
    one = listed["sessions"][1]
    assert set(one) == {"session_id", "user_id", "title", "task_count", "tokens_used", "created_at", "updated_at"}
    assert (one["user_id"], one["title"]) == ("acme", None)
    assert one["created_at"] < one["updated_at"]
    assert (await get(server, "/s-1")).json == one
    page = (await get(server, "?limit=1&offset=1")).json
    assert ([each["session_id"] for each in page["sessions"]], page["total_count"]) == (["s-1"], 2)
    assert (await get(server, key="sk-b")).json == {"sessions": [], "total_count": 0}


async def test_a_history_is_a_conversation_in_its_order(server: Any, engine: Any) -> None:
    tasks = await talk(server, engine, "s-1", "one", "two", "three")
    history = (await get(server, "/s-1/history")).json
    assert (history["session_id"], history["total_count"]) == ("s-1", 3)
    assert [(each["task_id"], each["result"], each["status"]) for each in history["tasks"]] == [
        (task, text, "COMPLETED") for task, text in zip(tasks, ["one", "two", "three"], strict=True)
    ]
    assert all(each["total_tokens"] == each["usage"]["total_tokens"] > 0 for each in history["tasks"])

    async def page(query: str) -> list[str]:
        return [each["result"] for each in (await get(server, f"/s-1/history?{query}")).json["tasks"]]

    assert await page("limit=2") == ["one", "two"]
    assert await page("limit=2&offset=2") == ["three"]
    assert await page("limit=1&offset=1") == ["two"]
    assert await page("offset=3") == []


async def test_turns_have_their_events_without_deltas(server: Any, engine: Any) -> None:
    tasks = await talk(server, engine, "s-1", "one two", "three", metadata={"k": 1})
    found = (await get(server, "/s-1/events")).json
    assert (found["session_id"], found["count"]) == ("s-1", 2)
    assert [{name: turn[name] for name in ("turn", "task_id", "final_output", "metadata")} for turn in found["turns"]] == [
        {"turn": 1, "task_id": tasks[0], "final_output": "one two", "metadata": {"k": 1}},
        {"turn": 2, "task_id": tasks[1], "final_output": "three", "metadata": {"k": 1}},
    ]
    for turn in found["turns"]:
        whole = (await server.ask("GET", f"{TASKS}/{turn['task_id']}/events?limit=1000", headers=bearer())).json["events"]
        assert turn["events"] == [event for event in whole if event["type"] != "LLM_PARTIAL"]
        assert len(turn["events"]) < len(whole)
    second = (await get(server, "/s-1/events?limit=1&offset=1")).json
    assert ([turn["turn"] for turn in second["turns"]], second["count"]) == ([2], 2)


async def test_a_session_gets_a_title(server: Any, engine: Any) -> None:
    await talk(server, engine, "s-1", "one")
    answer = await server.ask("PATCH", f"{SESSIONS}/s-1", headers=bearer(), json={"title": "Grüße"})
    assert (answer.status, answer.json["title"]) == (200, "Grüße")
    assert (await get(server, "/s-1")).json["title"] == "Grüße"
    for body, code in [
        ({}, "missing_required_parameter"),
        ({"title": ""}, "invalid_value"),
        ({"title": "  "}, "invalid_value"),
        ({"title": "x" * 61}, "invalid_value"),
        ({"title": 5}, "invalid_type"),
        ({"title": "x", "owner": "me"}, "unknown_parameter"),
    ]:
        refused = await server.ask("PATCH", f"{SESSIONS}/s-1", headers=bearer(), json=body)
        assert_error(refused, 422, code)
    assert (await get(server, "/s-1")).json["title"] == "Grüße"


async def test_a_forgotten_session_is_gone_from_every_list(server: Any, engine: Any) -> None:
    await talk(server, engine, "s-1", "one")
    await talk(server, engine, "s-2", "two")
    answer = await server.ask("DELETE", f"{SESSIONS}/s-1", headers=bearer())
    assert (answer.status, answer.body) == (204, b"")
    assert [each["session_id"] for each in (await get(server)).json["sessions"]] == ["s-2"]
    assert (await server.ask("GET", f"{TASKS}?session_id=s-1", headers=bearer())).json["total_count"] == 0
    assert_error(await get(server, "/s-1"), 404, "session_not_found")
    assert_error(await server.ask("DELETE", f"{SESSIONS}/s-1", headers=bearer()), 404, "session_not_found")


async def test_an_id_may_have_any_printable_character(server: Any, engine: Any) -> None:
    for name in ("a/b", "?x=1", "50%", "#", "~!@$^&*()_+|}{:<>", "%2F"):
        await talk(server, engine, name, "one")
        assert (await get(server, f"/{quote(name, safe='')}")).json["session_id"] == name


ROUTES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "get": ("GET", {}),
    "history": ("GET", {}),
    "events": ("GET", {}),
    "title": ("PATCH", {"json": {"title": "mine"}}),
    "delete": ("DELETE", {}),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_a_foreign_session_is_like_one_that_never_was(server: Any, engine: Any, route: str) -> None:
    await talk(server, engine, "s-1", "one")
    method, options = ROUTES[route]
    path = f"{SESSIONS}/{{}}" + (f"/{route}" if route in ("history", "events") else "")
    await assert_hidden(server, method, path, "s-1", "s-9", **options)
    assert (await get(server, "/s-1")).json["title"] is None


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", ["a%20b", "%00", "%ff", "%E2%80%A8", "x" * 257])
async def test_what_cannot_be_an_id_is_like_one_that_never_was(server: Any, route: str, name: str) -> None:
    method, options = ROUTES[route]
    path = f"{SESSIONS}/{name}" + (f"/{route}" if route in ("history", "events") else "")
    assert_error(await server.ask(method, path, headers=bearer(), **options), 404, "session_not_found")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "offset=-1", "offset=1&offset=1"])
async def test_pages_that_cannot_be_meant_are_a_400(server: Any, engine: Any, query: str) -> None:
    await talk(server, engine, "s-1", "one")
    for path in ("", "/s-1/history", "/s-1/events"):
        assert_error(await get(server, f"{path}?{query}"), 400, says=f"'{query.partition('=')[0]}'")


async def test_two_tenants_may_use_one_id(server: Any, engine: Any) -> None:
    """Each sees its own half."""
    await talk(server, engine, "s-1", "one")
    mine = await server.ask("POST", TASKS, headers=bearer("sk-b"), json={"query": "hi", "session_id": "s-1"})
    assert mine.status == 200
    history = (await get(server, "/s-1/history", key="sk-b")).json
    assert [each["task_id"] for each in history["tasks"]] == [mine.json["task_id"]]
    assert (await get(server, "/s-1", key="sk-b")).json["user_id"] == "other"
