"""Conversations with runs that ask for decisions, over real sockets: turns, decisions made once, and who may make them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from orchestrator.engine import Decision, Engine
from orchestrator.runs import RunState
from tests.gateway.http.conftest import Answer, Serve, Server
from tests.gateway.http.native import ALICE, MISSING, bearer
from tests.gateway.http.plans import PLANS, keyed
from tests.gateway.http.streams import Reader
from tests.orchestrator.engines import an_engine, until
from tests.wire.eventstream import read

CHAT = "/v1/chat/completions"
QUESTION = {"role": "user", "content": "go"}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with an_engine(models=PLANS) as engine:
        yield engine


@pytest.fixture
async def server(serve: Serve, engine: Engine) -> Server:
    return await serve(keyed(), engine)


async def ask(server: Server, model: str, *more: Any, key: str = "sk-a", headers: Any = None, **fields: Any) -> Answer:
    body = {"model": model, "messages": [QUESTION, *more], **fields}
    return await server.ask("POST", CHAT, headers=bearer(key, **(headers or {})), json=body)


def said(call: Any, content: str = "yes") -> list[Any]:
    """What a client adds to the conversation when its tool call has a result."""
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [turn, {"role": "tool", "tool_call_id": call["id"], "content": content}]


def message(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return answer.json["choices"][0]["message"]


def called(answer: Answer) -> Any:
    """The call that a turn ends with, streamed or whole."""
    if answer.headers["content-type"] == "application/json":
        return message(answer)["tool_calls"][0]
    deltas = [choice["delta"] for chunk in chunks(answer) for choice in chunk["choices"]]
    return next(delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta)


def chunks(answer: Answer) -> list[Any]:
    *data, done = [each.data for each in read(answer.body)]
    assert done == "[DONE]", answer
    return [json.loads(each) for each in data]


def text(answer: Answer) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks(answer) for choice in chunk["choices"])


@pytest.mark.parametrize("stream", [False, True])
async def test_one_run_in_two_turns(server: Server, engine: Engine, stream: bool) -> None:
    first = await ask(server, "approved", stream=stream)
    call = called(first)
    run_id = first.headers["x-workflow-id"]
    assert call["id"] == f"call_{run_id[5:]}_ok"
    asked = json.loads(call["function"]["arguments"])
    assert asked.pop("expires_at").endswith("Z")
    assert asked == {"approval_id": "ok", "proposed_action": "do ok", "reason": "it is due"}
    second = await ask(server, "approved", *said(call, '{"approved": true, "feedback": "well"}'), stream=stream)
    assert second.headers["x-workflow-id"] == run_id
    if stream:
        assert text(second) == "Hello"
        assert {chunk["id"] for chunk in chunks(second)} == {f"chatcmpl-{run_id[5:]}.ok"}
    else:
        assert message(second)["content"] == "Hello"
        assert second.json["id"] == f"chatcmpl-{run_id[5:]}.ok"
        assert first.json["usage"]["completion_tokens"] == 2
        assert second.json["usage"]["completion_tokens"] == 1
    (decided,) = (await engine.history(ALICE, run_id, limit=1000, types={"APPROVAL_DECISION"})).entries
    assert decided.event.payload == {
        "approval_id": "ok",
        "step": "ok",
        "approved": True,
        "feedback": "well",
        "decided_by": "alice",
    }
    assert (await engine.list(ALICE)).total == 1


async def test_several_approvals_are_several_turns(server: Server) -> None:
    for model in ("asks-twice", "asks-beside"):
        turn, history = await ask(server, model), []
        for name in ("one", "two"):
            call = called(turn)
            assert call["id"].endswith(f"_{name}")
            history += said(call)
            turn = await ask(server, model, *history)
        assert message(turn)["content"] == "Hello"


async def test_an_approval_in_a_retry_is_asked_for_again(server: Server) -> None:
    first = await ask(server, "asks-again")
    again = await ask(server, "asks-again", *said(called(first)))
    assert called(again)["id"] == f"{called(first)['id']}~2"
    last = await ask(server, "asks-again", *said(called(first)), *said(called(again)))
    assert message(last)["content"] == "Hello"
    run_id = first.headers["x-workflow-id"]
    read_again = await server.ask("GET", f"{CHAT}/chatcmpl-{run_id[5:]}.ok~2", headers=bearer())
    assert read_again.body == last.body


async def test_a_denied_run_says_why(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    denied = await ask(server, "approved", *said(called(first), '{"approved": false, "feedback": "not today"}'))
    assert denied.status >= 400
    assert "'ok' was not approved by alice: not today" in denied.json["error"]["message"]
    details = await engine.details(ALICE, first.headers["x-workflow-id"])
    assert (details.run.state, details.reason) == (RunState.CANCELLED, "'ok' was not approved by alice: not today")


async def test_sent_twice_is_decided_once(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    conversation = said(called(first))
    answers = await asyncio.gather(*(ask(server, "approved", *conversation) for _ in range(3)))
    assert len({answer.body for answer in answers}) == 1
    late = await ask(server, "approved", *conversation)
    assert late.body == answers[0].body
    run_id = first.headers["x-workflow-id"]
    assert len((await engine.history(ALICE, run_id, limit=1000, types={"APPROVAL_DECISION"})).entries) == 1
    other = await ask(server, "approved", *said(called(first), "no"))
    assert (other.status, other.json["error"]["code"]) == (409, "approval_decided")


async def test_of_two_who_disagree_one_decides(server: Server) -> None:
    first = await ask(server, "approved")
    yes, no = await asyncio.gather(*(ask(server, "approved", *said(called(first), word)) for word in ("yes", "no")))
    loser = yes if yes.status == 409 else no
    assert (loser.status, loser.json["error"]["code"]) == (409, "approval_decided")
    if loser is no:
        assert message(yes)["content"] == "Hello"
    else:
        assert "was not approved" in no.json["error"]["message"]


async def test_decided_elsewhere_meanwhile(server: Server, engine: Engine) -> None:
    """The same decision continues the conversation, another one is told that it comes too late."""
    first = await ask(server, "approved")
    await engine.decide(ALICE, first.headers["x-workflow-id"], Decision("ok", approved=True, decided_by="bob"))
    assert (await ask(server, "approved", *said(called(first), "no"))).status == 409
    assert message(await ask(server, "approved", *said(called(first))))["content"] == "Hello"


async def test_a_run_that_ended_undecided(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    run_id = first.headers["x-workflow-id"]
    await engine.cancel(ALICE, run_id, "enough")
    await until(engine, run_id, "STREAM_END", ALICE)
    late = await ask(server, "approved", *said(called(first)))
    assert (late.status, late.json["error"]["code"]) == (409, "run_ended")


async def test_what_cannot_be_understood_decides_nothing(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    garbled = await ask(server, "approved", *said(called(first), "perhaps"))
    assert (garbled.status, garbled.json["error"]["param"]) == (400, "messages[2].content")
    assert len(await engine.approvals(ALICE)) == 1
    assert message(await ask(server, "approved", *said(called(first))))["content"] == "Hello"


async def test_who_may_decide(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    call = called(first)
    scopeless = await ask(server, "approved", *said(call), key="sk-c")
    assert scopeless.status == 403
    assert "approvals:decide" in scopeless.json["error"]["message"]
    same = {"x-request-id": "same"}
    foreign = await ask(server, "approved", *said(call), key="sk-b", headers=same)
    missing = await ask(server, "approved", *said({**call, "id": f"call_{MISSING[5:]}_ok"}), key="sk-b", headers=same)
    assert foreign.status == 404
    assert foreign.body == missing.body
    unknown = await ask(server, "approved", *said({**call, "id": call["id"] + "x"}))
    assert unknown.status == 404
    assert len(await engine.approvals(ALICE)) == 1


async def test_turns_are_read_again_by_their_ids(server: Server, engine: Engine) -> None:
    ids = {"X-Headgate-Stream-Ids": "true"}
    first = await ask(server, "approved", stream=True, headers=ids)
    run_id = first.headers["x-workflow-id"]
    waiting = await server.ask("GET", f"{CHAT}/chatcmpl-{run_id[5:]}", headers=bearer())
    assert called(waiting)["id"] == called(first)["id"]
    unfinished = await server.ask("GET", f"{CHAT}/chatcmpl-{run_id[5:]}.ok", headers=bearer())
    assert (unfinished.status, unfinished.json["error"]["code"]) == (409, "run_in_progress")
    second = await ask(server, "approved", *said(called(first)), stream=True, headers=ids)
    for answer, turn in ((first, ""), (second, ".ok")):
        url = f"{CHAT}/chatcmpl-{run_id[5:]}{turn}"
        again = await server.ask("GET", f"{url}?stream=true", headers=bearer())
        assert again.body == answer.body
        frames = [frame + b"\n\n" for frame in answer.body.split(b"\n\n")[:-1]]
        for have in range(len(frames) - 1):
            rest = await server.ask("GET", f"{url}?stream=true&starting_after={have}", headers=bearer())
            assert rest.body == b"".join(frames[have:])
        for place, frame in enumerate(frames[:-1]):
            if frame.startswith(b"id: "):
                position = frame.partition(b"\n")[0].removeprefix(b"id: ").decode()
                rest = await server.ask("GET", f"{url}?stream=true", headers=bearer(**{"Last-Event-ID": position}))
                assert rest.body == b"".join(frames[place + 1 :])
    for wrong in (".nothing", ".", ".ok~2"):
        assert (await server.ask("GET", f"{CHAT}/chatcmpl-{run_id[5:]}{wrong}", headers=bearer())).status == 404


async def test_who_waits_sees_the_decision_of_others(server: Server, engine: Engine) -> None:
    body = {"model": "approved", "messages": [QUESTION], "stream": True, "headgate_options": {"approvals": "wait"}}
    async with server.http.post(server.url + CHAT, headers=bearer(), json=body) as response:
        run_id = response.headers["X-Workflow-ID"]
        await until(engine, run_id, "APPROVAL_REQUESTED", ALICE)
        await engine.decide(ALICE, run_id, Decision("ok", approved=True))
        events = await Reader(response).rest()
    assert events[-1].data == "[DONE]"
    assert "tool_calls" not in "".join(event.data for event in events)
    assert json.loads(events[1].data)["choices"][0]["delta"] == {"content": "Hello"}


async def test_other_agents_and_events_are_told_to_those_who_ask(server: Server) -> None:
    options = {"reasoning": True, "events": True}
    answer = await ask(server, "branches", stream=True, headgate_options=options)
    told = chunks(answer)
    thoughts = "".join(choice["delta"].get("reasoning_content", "") for chunk in told for choice in chunk["choices"])
    assert thoughts == "[left] l\n\n[right] r\n\n"
    assert text(answer) == "Hello"
    kinds = [event["type"] for chunk in told for event in chunk.get("headgate_events", ())]
    assert kinds.count("PROGRESS") == 8
    whole = message(await ask(server, "branches", headgate_options={"reasoning": True}))
    assert (whole["reasoning_content"], whole["content"]) == (thoughts, "Hello")
    assert "reasoning_content" not in message(await ask(server, "branches"))


@pytest.mark.parametrize(("policy", "state"), [(None, "CANCELLED"), ("continue", "RUNNING")])
async def test_who_leaves_in_the_second_turn_leaves_as_always(
    server: Server, engine: Engine, policy: str | None, state: str
) -> None:
    first = await ask(server, "then-hangs")
    options = {} if policy is None else {"headgate_options": {"on_disconnect": policy}}
    body = {"model": "then-hangs", "messages": [QUESTION, *said(called(first))], "stream": True, **options}
    run_id = first.headers["x-workflow-id"]
    async with server.http.post(server.url + CHAT, headers=bearer(), json=body) as response:
        await until(engine, run_id, "LLM_PARTIAL", ALICE)
        await Reader(response).next()
    if state == "CANCELLED":
        last = (await until(engine, run_id, "WORKFLOW_CANCELLED", ALICE))[-1]
        assert (last.payload or {})["reason"] == "the client disconnected"
    else:
        assert (await engine.get(ALICE, run_id)).state is RunState.RUNNING


async def test_who_leaves_between_the_turns_stops_nothing(server: Server, engine: Engine) -> None:
    first = await ask(server, "approved")
    assert (await engine.get(ALICE, first.headers["x-workflow-id"])).state is RunState.RUNNING
