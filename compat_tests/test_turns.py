"""Plans from a plain OpenAI client: approvals as tool calls, other agents as reasoning, progress beside it, and sessions."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import APIStatusError, BadRequestError, ConflictError, NotFoundError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from pydantic import SecretStr

from compat_tests.conftest import CHECKED
from compat_tests.doors import DOORS, Door, Server
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import TIMEOUT_S, Raw, script
from compat_tests.rules import Asked, complaints
from compat_tests.served import MALLORY
from headgate import Client
from protos import orchestrator_pb2 as pb
from tests.wire.eventstream import read

USER: ChatCompletionMessageParam = {"role": "user", "content": "Tell Ada."}


@pytest.fixture(params=CHECKED)
def checked(request: pytest.FixtureRequest) -> str:
    """Each way to run a plan that asks."""
    return str(request.param)


def result(turn: ChatCompletion, content: str = '{"approved": true}') -> list[ChatCompletionMessageParam]:
    """The turn and the result of its call, as clients add them to the conversation."""
    message = turn.choices[0].message
    assert message.tool_calls is not None
    answered = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": content}
    return cast(list[ChatCompletionMessageParam], [message.to_dict(), answered])


@promise("turns.asks", "turns.continues")
def test_the_sdk_decides_with_the_result_of_a_tool_call(client: OpenAI, checked: str) -> None:
    """orchestration.md §1, §3: whole and streamed, each turn with its own content, usage and id."""
    asked = client.chat.completions.with_raw_response.create(model=checked, messages=[USER])
    first, run_id = asked.parse(), asked.headers["x-workflow-id"]
    (call,) = first.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert (first.choices[0].finish_reason, call.function.name) == ("tool_calls", "request_approval")
    told = json.loads(call.function.arguments)
    assert (told["approval_id"], told["proposed_action"], told["reason"]) == ("send", "send: Dear Ada", "It leaves the house.")
    conversation = [USER, *result(first)]
    answered = client.chat.completions.with_raw_response.create(model=checked, messages=conversation)
    second = answered.parse()
    assert answered.headers["x-workflow-id"] == run_id
    assert (first.id, second.id) == (f"chatcmpl-{run_id[5:]}", f"chatcmpl-{run_id[5:]}.send")
    assert (second.choices[0].message.content, second.choices[0].finish_reason) == ("It was sent.", "stop")
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.completion_tokens, second.usage.completion_tokens) == (2, 3)
    with client.chat.completions.stream(model=checked, messages=[USER], stream_options={"include_usage": True}) as stream:
        streamed = stream.until_done().get_final_completion()
    with client.chat.completions.stream(model=checked, messages=[USER, *result(streamed, "yes")]) as stream:
        assert stream.until_done().get_final_completion().choices[0].message.content == "It was sent."


@promise("turns.denied", "turns.once")
def test_a_decision_holds(client: OpenAI, checked: str) -> None:
    """orchestration.md §3: no is an error with its reason; sent again it is the same; another decision comes too late."""
    denied = [
        USER,
        *result(client.chat.completions.create(model=checked, messages=[USER]), '{"approved": false, "feedback": "rude"}'),
    ]
    for _ in range(2):
        with pytest.raises(APIStatusError) as refused:
            client.chat.completions.create(model=checked, messages=denied)
        assert "'send' was not approved" in refused.value.message
        assert refused.value.message.count("rude") == 1
    turn = client.chat.completions.create(model=checked, messages=[USER])
    bodies = [client.chat.completions.create(model=checked, messages=[USER, *result(turn)]).to_json() for _ in range(2)]
    assert bodies[0] == bodies[1]
    with pytest.raises(ConflictError) as late:
        client.chat.completions.create(model=checked, messages=[USER, *result(turn, "no")])
    assert late.value.code == "approval_decided"


@promise("turns.refused")
def test_what_decides_nothing(client: OpenAI, brisk_client: OpenAI, checked: str) -> None:
    """orchestration.md §3, P21: words that mean nothing, runs that never were, runs of others."""
    turn = client.chat.completions.create(model=checked, messages=[USER])
    with pytest.raises(BadRequestError) as garbled:
        client.chat.completions.create(model=checked, messages=[USER, *result(turn, "perhaps")])
    assert garbled.value.param == "messages[2].content"
    conversation = json.dumps([USER, *result(turn)])
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model=checked, messages=json.loads(conversation.replace("_send", "_sent")))
    stranger = brisk_client.with_options(api_key=MALLORY)
    with pytest.raises(NotFoundError):
        stranger.chat.completions.create(model=checked, messages=json.loads(conversation))
    again = brisk_client.chat.completions.create(model=checked, messages=json.loads(conversation))
    assert again.choices[0].message.content == "It was sent."


@promise("turns.resume")
def test_both_turns_are_resumed_at_every_chunk(client: OpenAI, raw: Raw, raw_brisk: Raw, checked: str) -> None:
    """design.md §1: the bytes of a turn are a function of the log, on any replica."""
    ids = {"X-Headgate-Stream-Ids": "true"}
    first = raw.chat(checked, "Tell Ada.", stream=True, headers=ids)
    call = next(call for chunk in first.chunks for call in chunk["choices"][0]["delta"].get("tool_calls", ()))
    turn = {"role": "assistant", "content": None, "tool_calls": [{key: call[key] for key in ("id", "type", "function")}]}
    messages = [USER, turn, {"role": "tool", "tool_call_id": call["id"], "content": "yes"}]
    body = {"model": checked, "messages": messages, "stream": True}
    second = raw.send("POST", "/v1/chat/completions", body, headers=ids)
    assert second.text == "It was sent."
    for answer, name in ((first, first.run), (second, f"{first.run}.send")):
        assert complaints(answer.body, Asked(ids=True)) == []
        for count in range(len(answer.frames)):
            path = f"/v1/chat/completions/chatcmpl-{name[5:]}?stream=true&starting_after={count}"
            assert raw_brisk.send("GET", path).frames == answer.frames[count:]
        for place, event in enumerate(answer.events[:-2]):
            if answer.frames[place].startswith(b"id:"):
                path = f"/v1/chat/completions/chatcmpl-{name[5:]}?stream=true"
                rest = raw_brisk.send("GET", path, headers={"Last-Event-ID": event.id})
                assert rest.frames == answer.frames[place + 1 :]


@promise("turns.langchain")
def test_langchain_answers_a_tool_call(headgate: str, checked: str) -> None:
    """orchestration.md §1: a framework that knows only tools can decide, whole and streamed."""
    llm = ChatOpenAI(base_url=f"{headgate}/v1", api_key=SecretStr("none"), model=checked, max_retries=0, timeout=TIMEOUT_S)
    question = HumanMessage("Tell Ada.")
    asked = llm.invoke([question])
    assert isinstance(asked, AIMessage)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]["approval_id"]) == ("request_approval", "send")
    decision = ToolMessage('{"approved": true}', tool_call_id=call["id"])
    streamed = "".join(chunk.text for chunk in llm.stream([question, asked, decision]))
    assert streamed == llm.invoke([question, asked, decision]).text == "It was sent."


@promise("turns.every-door")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_denial_is_the_same_at_every_door(here: Server, raw_brisk: Raw, door: Door, checked: str) -> None:
    """orchestration.md §3: cancelled by decision, with the reason."""
    run_id = here.submit(checked, "Tell Ada.")
    with door.read(here, run_id) as events:
        assert next(event for event in events if event["type"] == "APPROVAL_REQUESTED")
    decision = {"workflow_id": run_id, "approval_id": "send", "approved": False, "feedback": "rude"}
    assert raw_brisk.send("POST", "/api/v1/approvals/decision", decision).status == 200
    with door.read(here, run_id) as events:
        ending = next(event for event in events if event["type"] == "WORKFLOW_CANCELLED")
    assert ending["payload"]["reason"] == "'send' was not approved by alice: rude"


def _by_rest(server: Server, run_id: str) -> None:
    decision = {"workflow_id": run_id, "approval_id": "send", "approved": True}
    assert server.raw.send("POST", "/api/v1/approvals/decision", decision).status == 200


def _by_grpc(server: Server, run_id: str) -> None:
    decision = pb.ApproveTaskRequest(approval_id="send", workflow_id=run_id, approved=True)
    assert server.tasks.ApproveTask(decision, metadata=server.metadata, timeout=TIMEOUT_S).success


def _by_websocket(server: Server, run_id: str) -> None:
    with server.socket(run_id, types="APPROVAL_DECISION") as connection:
        connection.send(json.dumps({"op": "approve", "approval_id": "send", "approved": True}))
        assert {"op": "approve", "ok": True, "workflow_id": run_id} in [json.loads(connection.recv(TIMEOUT_S)) for _ in range(2)]


def _by_client(server: Server, run_id: str) -> None:
    with Client(server.url) as headgate:
        assert [each.approval_id for each in headgate.approvals() if each.workflow_id == run_id] == ["send"]
        assert headgate.approve(run_id, "send").success


def _by_command(server: Server, run_id: str) -> None:
    def headgate(*arguments: str) -> str:
        command = [sys.executable, "-m", "headgate", *arguments, "--url", server.url]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S).stdout

    assert f"{run_id}  send" in headgate("approvals")
    headgate("approve", run_id, "send")


@promise("turns.deciders")
@pytest.mark.parametrize("decide", [_by_rest, _by_grpc, _by_websocket, _by_client, _by_command])
def test_whoever_approves_the_plan_goes_on(here: Server, decide: Callable[[Server, str], None], checked: str) -> None:
    """P21: listed and decided at each door, and listed no more."""
    run_id = here.submit(checked, "Tell Ada.")
    with DOORS["sse"].read(here, run_id) as events:
        assert next(event for event in events if event["type"] == "APPROVAL_REQUESTED")
        decide(here, run_id)
        assert next(event for event in events if event["type"] == "WORKFLOW_COMPLETED")["payload"]["result"] == "It was sent."
    pending = here.raw.send("GET", "/api/v1/approvals").json["approvals"]
    assert run_id not in [each["workflow_id"] for each in pending]


@promise("turns.reasoning")
def test_other_agents_are_heard_when_that_is_asked_for(client: OpenAI, checked: str) -> None:
    """orchestration.md §1: only the answering agent's deltas are content."""
    asked: Any = {"model": checked, "messages": [USER]}
    loud = client.chat.completions.create(**asked, extra_body={"headgate_options": {"reasoning": True}})
    assert loud.choices[0].message.model_dump()["reasoning_content"] == "[draft] Dear Ada\n\n"
    assert loud.choices[0].message.content is None
    assert "reasoning_content" not in client.chat.completions.create(**asked).choices[0].message.model_dump()


@promise("progress.inline")
def test_a_plan_that_comes_with_the_request(headgate: str) -> None:
    """orchestration.md §2: durable, with progress at every step, and continued from any position."""
    steps = [
        {"parallel": [_agent("a", 'say "one"'), _agent("b", 'say "two"')]},
        _agent("c", 'say "{{ outputs.a }} {{ outputs.b }}"', answers=True),
    ]
    body = {"workflow": {"name": "mine", "steps": steps}, "input": "go"}
    answer = httpx.post(f"{headgate}/api/v1/execute", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 200
    run_id = answer.headers["x-workflow-id"]
    *events, done = read(answer.content)
    objects = [json.loads(event.data) for event in events]
    assert done.data == "[DONE]"
    shown = {(each["step_name"], each["status"]): each["progress"] for each in objects}
    assert shown.pop(("a", "completed")) + shown.pop(("b", "completed")) == 0.75
    assert shown == {
        ("", "started"): 0,
        ("parallel", "started"): 0,
        ("a", "started"): 0,
        ("b", "started"): 0,
        ("parallel", "completed"): 0.5,
        ("c", "started"): 0.5,
        ("c", "completed"): 1,
        ("", "completed"): 1,
    }
    assert objects[-1]["result"]["output"] == "one two"
    for place, event in enumerate(events):
        asked = {"workflow_id": run_id, "last_event_id": event.id}
        rest = httpx.get(f"{headgate}/api/v1/stream/progress", params=asked, timeout=TIMEOUT_S)
        assert [each.data for each in read(rest.content)] == [each.data for each in [*events, done][place + 1 :]]
    taken = httpx.post(f"{headgate}/api/v1/execute", json={"name": "demo", "workflow_id": run_id}, timeout=TIMEOUT_S)
    assert taken.status_code == 409


def _agent(name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{text}", **more}}


@promise("sessions.memory")
@pytest.mark.parametrize("by_header", [True, False])
def test_a_model_with_a_memory_is_told_of_the_session(
    client: OpenAI, model_server: ModelServer, mark: str, by_header: bool
) -> None:
    """orchestration.md, issue 5.7: explicit per model; a conversation of the client's own is taken at its word."""
    session = f"session-{uuid.uuid4().hex}"
    more: Any = {"extra_headers": {"X-Session-ID": session}} if by_header else _in_session(session)

    def ask(model: str, prompt: str, *before: Any, **fields: Any) -> list[Any]:
        messages = [*before, {"role": "user", "content": prompt}]
        client.chat.completions.create(model=model, messages=messages, **fields)
        return list(model_server.asked(prompt).body["messages"])

    first, second, third, fourth = (script(f'say "{word}"', mark, f"# {word}") for word in ("one", "two", "three", "four"))
    assert ask("remembers", first, **more) == [_user(first)]
    assert ask("remembers", second, **more) == [_user(first), _assistant("one"), _user(second)]
    assert ask("wire", third, **more) == [_user(third)]
    own = [_user("Hm?"), _assistant("Hm.")]
    assert ask("remembers", fourth, *own, **more) == [*own, _user(fourth)]


def _in_session(session: str) -> Any:
    return {"extra_body": {"headgate_options": {"session_id": session}}}


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
