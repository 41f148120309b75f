"""Answers that are given again, over HTTP: the same bytes at every door, and headers that say so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.wire.sse_decoder import Decoder
from tests.gateway.http.native import TASKS, script, settings
from tests.gateway.http.sockets import watching
from tests.gateway.http.streams import SSE
from tests.gateway.http.test_chat_route import CHAT, ask, bearer, data, text

HELLO = 'say "Hello cached world"'


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def chat(server: Any, words: str = HELLO, *, key: str = "sk-a", headers: Any = None, **fields: Any) -> Any:
    body = ask(words, **{"model": "cached", "temperature": 0, **fields})
    answer = await server.ask("POST", CHAT, headers=bearer(key, **(headers or {})), json=body)
    assert answer.status == 200, answer
    return answer


def found(answer: Any) -> tuple[str | None, str | None]:
    return answer.headers.get("x-cache"), answer.headers.get("x-headgate-cache")


HIT, MISS = ("hit", "hit"), ("miss", "miss")


def own(value: Any) -> Any:
    """Without what names the run and its time."""
    if isinstance(value, dict):
        return {name: own(each) for name, each in value.items() if name not in ("id", "created")}
    return [own(each) for each in value] if isinstance(value, list) else value


async def test_a_stream_in_the_same_chunks(server: Any, witness: Any) -> None:
    first, again = [await chat(server, stream_options={"include_usage": True}) for _ in range(2)]
    assert (found(first), found(again)) == (MISS, HIT)
    assert first.headers["x-workflow-id"] != again.headers["x-workflow-id"]
    assert own(data(first.body)) == own(data(again.body))
    assert (text(again.body), data(again.body)[-1]) == ("Hello cached world", "[DONE]")
    assert len(witness.calls) == 1


async def test_streamed_and_whole_are_the_same_question(server: Any, witness: Any) -> None:
    first = await chat(server, "reason 3 words; say 4 words", stream=False, n=2)
    again = await chat(server, "reason 3 words; say 4 words", stream=False, n=2, user="somebody else", metadata={"a": "b"})
    streamed = await chat(server, "reason 3 words; say 4 words", n=2, headgate_options={"events": True})
    assert (found(first), found(again), found(streamed)) == (MISS, HIT, HIT)
    assert own(first.json) == own(again.json)
    assert first.json["usage"]["total_tokens"] > 0
    assert len(witness.calls) == 1


async def test_it_is_read_again_and_resumed_like_any_other(server: Any) -> None:
    await chat(server)
    again = await chat(server)
    run = again.headers["x-workflow-id"]
    retrieved = await server.ask("GET", f"{CHAT}/{run}?stream=true", headers=bearer())
    assert retrieved.body == again.body
    rest = await server.ask("GET", f"{CHAT}/{run}?stream=true&starting_after=2", headers=bearer())
    assert b"\n\n".join(again.body.split(b"\n\n")[2:]) == rest.body
    whole = await server.ask("GET", f"{CHAT}/{run}", headers=bearer())
    assert whole.json["choices"][0]["message"]["content"] == "Hello cached world"


async def test_the_native_doors_show_the_same_events(server: Any) -> None:
    tasks = []
    for _ in range(2):
        answer = await server.ask("POST", TASKS, headers=bearer(), json=script(HELLO, model="cached-at-any"))
        name = answer.json["task_id"]
        stream = await server.ask("GET", f"{SSE}?workflow_id={name}", headers=bearer())
        async with watching(server, name) as client:
            socket = await client.rest()
        tasks.append((answer, Decoder().feed(stream.body), socket))
    (first, first_events, first_socket), (again, events, socket) = tasks
    assert (found(first), found(again)) == (MISS, HIT)
    assert again.json["status"] == "COMPLETED"
    names = [answer.json["task_id"] for answer in (first, again)]
    known = [(await server.ask("GET", f"{TASKS}/{name}", headers=bearer())).json for name in names]
    assert [task["cached_from"] for task in known] == [None, names[0]]
    assert known[0]["usage"] == known[1]["usage"]

    def seen(message: Any) -> Any:
        return {name: message.get(name) for name in ("type", "agent_id", "message")}

    assert [seen(message) for message in socket] == [seen(message) for message in first_socket]
    assert [message["seq"] for message in socket] == list(range(1, len(socket) + 1))
    assert socket[0]["payload"]["cached_from"] == first.json["task_id"]
    assert [event.event for event in events] == [event.event for event in first_events]
    assert [seen(json.loads(event.data)) for event in events[:-1]] == [seen(message) for message in socket[:-1]]


async def test_a_task_may_be_submitted_with_a_stream(server: Any) -> None:
    for expected in (MISS, HIT):
        answer = await server.ask("POST", f"{TASKS}/stream", headers=bearer(), json=script(HELLO, model="cached-at-any"))
        assert (answer.status, found(answer)) == (201, expected)


async def test_a_plan_that_is_executed_by_its_name(server: Any) -> None:
    asked = {"input": f"/script\n{HELLO}"}
    answers = [
        await server.ask("POST", "/api/v1/execute", headers=bearer(), json={"name": "cached-at-any", **asked}) for _ in range(2)
    ]
    assert [answer.status for answer in answers] == [200, 200]
    assert [found(answer) for answer in answers] == [MISS, HIT]


async def test_a_repeated_execution_is_marked_as_one(server: Any) -> None:
    """Watching the run forgot what was known of its beginning."""
    headers = bearer(**{"Idempotency-Key": "k"})
    answers = [
        await server.ask("POST", "/api/v1/execute", headers=headers, json={"name": "patient", "input": f"/script\n{HELLO}"})
        for _ in range(2)
    ]
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true"]


async def test_another_tenant_asks_anew(server: Any, witness: Any) -> None:
    await chat(server)
    assert found(await chat(server, key="sk-b")) == MISS
    assert len(witness.calls) == 2


@pytest.mark.parametrize("fields", [{"temperature": 0.7}, {"temperature": None}])
async def test_what_is_not_certain_is_not_kept(server: Any, fields: dict[str, Any]) -> None:
    assert [found(await chat(server, **fields)) for _ in range(2)] == [MISS, MISS]


async def test_a_model_without_a_cache_says_nothing_of_one(server: Any) -> None:
    assert found(await chat(server, model="headgate-demo")) == (None, None)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("no-cache", [MISS, HIT]),
        ("No-Cache, max-stale=3", [MISS, HIT]),
        ("max-age=0", [MISS, HIT]),
        ("no-store", [MISS, MISS]),
        ("no-cache,no-store", [MISS, MISS]),
        ("only-if-cached, max-age=60", [MISS, HIT]),
        ("", [MISS, HIT]),
    ],
)
async def test_a_request_may_say_how_it_is_to_be_answered(server: Any, control: str, expected: list[Any]) -> None:
    first = await chat(server, headers={"Cache-Control": control})
    assert [found(first), found(await chat(server))] == expected


async def test_a_new_answer_may_be_asked_for_although_there_is_one(server: Any, witness: Any) -> None:
    await chat(server)
    for control in ("no-cache", "no-store"):
        assert found(await chat(server, headers={"Cache-Control": control})) == MISS
    assert len(witness.calls) == 3


async def test_what_failed_is_asked_anew(server: Any, witness: Any) -> None:
    for calls in (1, 2):
        answer = await server.ask("POST", CHAT, headers=bearer(), json=ask("status 400", model="cached", temperature=0))
        assert (answer.status, found(answer)) == (400, MISS)
        assert len(witness.calls) == calls


async def test_pages_may_read_the_headers(serve: Any, engine: Any) -> None:
    server = await serve(settings(server={"origins": ["https://app.example.com"]}), engine)
    answer = await chat(server, headers={"Origin": "https://app.example.com"})
    assert {"x-cache", "x-headgate-cache"} <= set(answer.headers["access-control-expose-headers"].split(", "))
