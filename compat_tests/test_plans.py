"""The plans that ship, from outside: a team behind a model's name, through every kind of client."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import SecretStr

from compat_tests.doors import DOORS, Door, Event, Refused, Server, operate, refuse_rpc
from compat_tests.manifest import promise
from compat_tests.model_server import WAIT_S, ModelServer
from compat_tests.raw import TIMEOUT_S, Raw, script
from compat_tests.rules import Asked, complaints
from compat_tests.shipped import ANSWER, NOTICE, QUESTION
from compat_tests.test_openai_sdk import WEATHER, user
from compat_tests.watch import Watch, reading, seen, watching
from headgate import AsyncClient, Client
from headgate.errors import Conflict, TaskCancelled
from protos import orchestrator_pb2 as tasks

TEAM = ["planner", "known", "doubted", "open", "writer"]
RESEARCHERS = {"known", "doubted", "open"}


@pytest.fixture(params=("headgate-research", "headgate-research-none"))
def research(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=("headgate-review", "headgate-review-none"))
def review(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def llm(headgate: str) -> Iterator[Callable[[str], ChatOpenAI]]:
    with openai.DefaultHttpxClient() as http:

        def chat(model: str) -> ChatOpenAI:
            key = SecretStr("none")
            return ChatOpenAI(base_url=f"{headgate}/v1", api_key=key, model=model, max_retries=0, timeout=20.0, http_client=http)

        yield chat


def used(log: list[Event]) -> int:
    """Tokens of all calls that a run made."""
    return sum(event["payload"]["usage"]["total_tokens"] for event in log if event["type"] == "LLM_OUTPUT")


@promise("plans.answer")
def test_a_team_answers_the_sdk_as_a_model_does(client: OpenAI, raw: Raw, here: Server, research: str) -> None:
    """orchestration.md §1: only the agent that answers is heard; usage is that of all five."""
    answer = client.chat.completions.with_raw_response.create(model=research, messages=user(QUESTION))
    whole, log = answer.parse(), here.log(answer.headers["x-workflow-id"])
    (choice,) = whole.choices
    assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (ANSWER, "stop", None)
    assert sorted(event["agent_id"] for event in log if event["type"] == "LLM_OUTPUT") == sorted(TEAM)
    assert whole.usage is not None
    assert whole.usage.total_tokens == used(log)
    with client.chat.completions.stream(
        model=research, messages=user(QUESTION), stream_options={"include_usage": True}
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert (text, final.choices[0].finish_reason, final.usage) == (ANSWER, "stop", whole.usage)
    assert complaints(raw.chat(research, QUESTION, stream_options={"include_usage": True}).body, Asked(usage=True)) == []


@promise("plans.answer")
def test_a_plain_chat_ships_too(client: OpenAI, raw: Raw) -> None:
    """orchestration.md §1: a plan of one agent."""
    said = client.chat.completions.create(model="headgate-demo", messages=user(QUESTION)).choices[0].message.content
    streamed = raw.chat("headgate-demo", QUESTION)
    assert said == streamed.text
    assert said is not None
    assert QUESTION in said
    assert complaints(streamed.body) == []


@promise("plans.answer")
async def test_a_team_answers_langchain(llm: Callable[[str], ChatOpenAI], here: Server, research: str) -> None:
    """orchestration.md §1."""
    model = llm(research)
    whole = model.invoke(QUESTION)
    streamed: Any = None
    for chunk in model.stream(QUESTION, stream_usage=True):
        streamed = chunk if streamed is None else streamed + chunk
    for answer in (whole, streamed):
        assert (answer.text, answer.response_metadata["finish_reason"]) == (ANSWER, "stop")
    newest, before = here.raw.send("GET", "/api/v1/tasks?limit=2").json["tasks"]
    for answer, task in ((streamed, newest), (whole, before)):
        assert answer.usage_metadata is not None
        assert answer.usage_metadata["total_tokens"] == used(here.log(task["task_id"]))


@promise("plans.others")
def test_the_others_are_seen_by_who_asks(client: OpenAI, here: Server, research: str) -> None:
    """design.md §6: asked for, their words are reasoning and the run's events come along; the answer stays what it is."""
    options: Any = {"headgate_options": {"reasoning": True, "events": True}}
    stream = client.chat.completions.create(model=research, messages=user(QUESTION), stream=True, extra_body=options)
    chunks = [chunk.to_dict() for chunk in stream]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]  # type: ignore[index]
    assert "".join(delta.get("content", "") for delta in deltas) == ANSWER
    thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
    events: list[Event] = [event for chunk in chunks for event in chunk.get("headgate_events", ())]  # type: ignore[attr-defined]
    log = here.log(events[0]["workflow_id"])
    assert events == [event for event in log if not _is_the_answer(event)]
    assert thought.startswith(f"[planner] 1. What is known of this: {QUESTION}\n")
    for agent in (*RESEARCHERS, "planner"):
        assert f"[{agent}] " in thought
    assert "[writer]" not in thought


def _is_the_answer(event: Event) -> bool:
    """What the chat door says in its own words."""
    said = event["type"] in ("LLM_PARTIAL", "LLM_OUTPUT") and event["agent_id"] == "writer"
    return said or event["type"] in ("WORKFLOW_COMPLETED", "STREAM_END")


@promise("plans.progress")
def test_progress_is_counted(here: Server, research: str) -> None:
    """orchestration.md §2: three steps are a third each, three branches a third of that."""
    run = here.submit(research, QUESTION)
    with here.raw.open("GET", f"/api/v1/stream/progress?workflow_id={run}") as response:
        body = response.read().decode()
    told = [json.loads(line.removeprefix("data: ")) for line in body.splitlines() if line.startswith("data: {")]
    shares = [step["progress"] for step in told]
    assert shares == sorted(shares)
    finished = [(step["step_name"], round(step["progress"], 9)) for step in told if step["status"] == "completed"]
    assert finished[0] == ("planner", round(1 / 3, 9))
    assert {name for name, _ in finished[1:4]} == RESEARCHERS
    assert [share for _, share in finished[1:4]] == [round(share / 9, 9) for share in (4, 5, 6)]
    assert [name for name, _ in finished[4:]] == ["researchers", "writer", ""]
    assert (told[-1]["progress"], told[-1]["result"]["success"], told[-1]["result"]["output"]) == (1, True, ANSWER)
    assert {(step["parallel_index"], step["parallel_total"]) for step in told if "parallel_index" in step} == {
        (index, 3) for index in range(3)
    }


@promise("plans.approval")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_sdk_approves(client: OpenAI, here: Server, review: str, streamed: bool) -> None:
    """orchestration.md §3: two turns of one run, each with its text and its usage."""
    messages = user("Version 1.0")
    asked = turn(client, review, messages, streamed)
    assert asked.choices[0].finish_reason == "tool_calls"
    message = asked.choices[0].message
    (call,) = message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (call.function.name, arguments["proposed_action"]) == ("request_approval", f"Send to everybody: {NOTICE}")
    messages = [*messages, message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": '{"approved": true}'}]
    answered = turn(client, review, messages, streamed)
    assert answered.choices[0].finish_reason == "stop"
    assert answered.choices[0].message.content == f"Sent, as approved by anonymous: {NOTICE}"
    run = "task-" + asked.id.removeprefix("chatcmpl-")
    assert answered.id == f"{asked.id}.publish"
    assert asked.usage.total_tokens + answered.usage.total_tokens == used(here.log(run))


@promise("plans.approval")
def test_the_sdk_denies(client: OpenAI, here: Server, review: str) -> None:
    """orchestration.md §1: denied ends the run as cancelled by decision, and nothing was sent."""
    messages = user("Version 1.0")
    asked = turn(client, review, messages, streamed=False)
    (call,) = asked.choices[0].message.tool_calls
    messages = [*messages, asked.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "no"}]
    for streamed in (False, True):
        with pytest.raises(openai.ConflictError) as refused:
            turn(client, review, messages, streamed)
        assert refused.value.code == "run_cancelled"
    log = here.log("task-" + asked.id.removeprefix("chatcmpl-"))
    assert [event["type"] for event in log[-2:]] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert "publisher" not in {event.get("agent_id") for event in log}


def turn(client: OpenAI, model: str, messages: Any, streamed: bool) -> Any:
    if not streamed:
        return client.chat.completions.create(model=model, messages=messages)
    with client.chat.completions.stream(model=model, messages=messages, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


@promise("plans.approval")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_langchain_approves(llm: Callable[[str], ChatOpenAI], review: str, streamed: bool) -> None:
    """orchestration.md §3: what LangChain keeps of a turn is enough to go on."""
    model = llm(review)

    def turn(messages: list[Any]) -> AIMessage:
        if not streamed:
            return model.invoke(messages)
        whole: Any = None
        for chunk in model.stream(messages):
            whole = chunk if whole is None else whole + chunk
        assert isinstance(whole, AIMessageChunk)
        return whole

    messages: list[Any] = [HumanMessage("Version 1.0")]
    asked = turn(messages)
    (call,) = asked.tool_calls
    assert (call["name"], call["args"]["proposed_action"]) == ("request_approval", f"Send to everybody: {NOTICE}")
    answered = turn([*messages, asked, ToolMessage("yes", tool_call_id=call["id"])])
    assert (answered.text, answered.tool_calls) == (f"Sent, as approved by anonymous: {NOTICE}", [])


def by_rest(server: Server, run: str, approved: bool) -> None:
    body = {"workflow_id": run, "approval_id": "publish", "approved": approved}
    answer = server.raw.send("POST", "/api/v1/approvals/decision", body)
    if answer.status != 200:
        raise Refused(answer.status, answer.error["code"])


def by_socket(server: Server, run: str, approved: bool) -> None:
    with server.socket(run, types="X_NOTHING") as socket:
        answer = operate(socket, op="approve", approval_id="publish", approved=approved)
    if not answer["ok"]:
        raise Refused(409, answer["error"]["code"])


def by_rpc(server: Server, run: str, approved: bool) -> None:
    request = tasks.ApproveTaskRequest(workflow_id=run, approval_id="publish", approved=approved)
    try:
        assert server.tasks.ApproveTask(request, metadata=server.metadata, timeout=TIMEOUT_S).success
    except grpc.RpcError as error:
        refuse_rpc(error)


DECIDE: Mapping[str, Callable[[Server, str, bool], None]] = {"rest": by_rest, "websocket": by_socket, "grpc": by_rpc}


@promise("plans.decided")
@pytest.mark.parametrize("approved", [True, False], ids=["approved", "denied"])
@pytest.mark.parametrize("decide", DECIDE.values(), ids=DECIDE)
def test_every_door_decides_once(
    here: Server, there: Server, review: str, decide: Callable[[Server, str, bool], None], approved: bool
) -> None:
    """orchestration.md §3: decided at one replica, seen at another; whoever comes second is told."""
    run = here.submit(review, "Version 1.0")
    with watching() as start:
        watch = start(lambda: reading(DOORS["sse"], there, run))
        assert watch.until("APPROVAL_REQUESTED")["payload"]["approval_id"] == "publish"
        decide(here, run, approved)
        events = watch.end()
    (decision,) = [event["payload"] for event in events if event["type"] == "APPROVAL_DECISION"]
    assert (decision["approval_id"], decision["approved"]) == ("publish", approved)
    task = here.task(run)
    assert task["status"] == ("COMPLETED" if approved else "CANCELLED")
    assert task.get("result") == (f"Sent, as approved by anonymous: {NOTICE}" if approved else None)
    with pytest.raises(Refused) as refused:
        by_rest(there, run, not approved)
    assert refused.value.status == 409


@pytest.fixture
def question() -> str:
    """One that nobody else asks, so that the model server knows whose prompts it has."""
    return uuid.uuid4().hex


@contextmanager
def in_the_middle(server: Server, door: Door, model: str, question: str) -> Iterator[tuple[str, Watch]]:
    """A run whose first researcher has finished while the others have only begun, and who watches it. It ends with the test."""
    run = server.submit(model, question)
    with watching() as start:
        watch = start(lambda: reading(door, server, run))
        try:
            watch.when(partial(_is, "AGENT_COMPLETED", "known"))
            for agent in ("doubted", "open"):
                watch.when(partial(_is, "LLM_PARTIAL", agent))
            yield run, watch
        finally:
            if server.task(run)["status"] in ("RUNNING", "PAUSED"):
                door.ask(server, run, "cancel", "the test is over")


def _is(type: str, agent: str, event: Event) -> bool:
    return (event["type"], event.get("agent_id")) == (type, agent)


@promise("plans.pause")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_pause_costs_nothing_that_had_finished(here: Server, door: Door) -> None:
    """orchestration.md §3: the researcher that had finished is not asked again; the others go on where they were."""
    with in_the_middle(here, door, "eased", QUESTION) as (run, watch):
        door.ask(here, run, "pause", "lunch")
        watch.until("WORKFLOW_PAUSED")
        assert here.task(run)["status"] == "PAUSED"
        door.ask(here, run, "resume", "back")
        watch.end()
    assert here.task(run)["result"] == ANSWER
    log = here.log(run)
    paused = next(place for place, event in enumerate(log) if event["type"] == "WORKFLOW_PAUSED")
    assert {event["agent_id"] for event in log[paused:] if event["type"] == "LLM_OUTPUT"} == {"doubted", "open", "writer"}
    assert sorted(event["agent_id"] for event in log if event["type"] == "AGENT_STARTED") == sorted(TEAM)


@promise("plans.cancel")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_cancelling_reaches_every_branch(here: Server, door: Door, model_server: ModelServer, question: str) -> None:
    """P14: every socket that is open is closed, and the run says truly how it ended."""
    with in_the_middle(here, door, "held", question) as (run, watch):
        door.ask(here, run, "cancel", "enough")
        events = watch.end()
    assert [event["type"] for event in events[-2:]] == ["WORKFLOW_CANCELLED", "STREAM_END"]
    assert here.log(run)[-2]["payload"]["reason"] == "enough"
    planner, *researchers = model_server.prompts(question)
    ended = [model_server.ending(prompt, 2.0) for prompt in (planner, *sorted(researchers))]
    assert ended == ["completed", "completed", "cancelled", "cancelled"]


@promise("plans.client")
async def test_the_client_follows_a_team(headgate: str, research: str) -> None:
    """native.md §7: asynchronously and not, over both transports."""
    async with AsyncClient(headgate, timeout_s=20.0) as client:
        task, stream = await client.submit_and_stream(QUESTION, model=research)
        events = [event async for event in stream]
        assert await task.result(WAIT_S) == ANSWER
        again = [event async for event in client.stream(task.task_id, transport="ws")]
        assert [event.seq for event in again] == [event.seq for event in events]
        assert (await task.get()).progress == 1.0
    shares = [(event.payload or {})["progress"] for event in events if event.type == "PROGRESS"]
    assert shares == sorted(shares)
    assert {event.agent_id for event in events if event.type == "LLM_OUTPUT"} == set(TEAM)


@promise("plans.client")
@pytest.mark.parametrize("approved", [True, False], ids=["approved", "denied"])
def test_the_client_for_ordinary_programs_decides(headgate: str, review: str, approved: bool, question: str) -> None:
    """native.md §7."""
    with Client(headgate, timeout_s=20.0) as client:
        task = client.submit("Version 1.0", model=review, session_id=question)
        for event in task.stream():
            if event.type == "APPROVAL_REQUESTED":
                (waiting,) = client.approvals(session_id=question)
                client.approve(waiting.workflow_id, waiting.approval_id, approved=approved)
        if approved:
            assert task.result(WAIT_S) == f"Sent, as approved by anonymous: {NOTICE}"
        else:
            with pytest.raises(TaskCancelled, match="not approved"):
                task.result(WAIT_S)
        with pytest.raises(Conflict):
            client.approve(waiting.workflow_id, waiting.approval_id)


async def started(url: str, *arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "headgate", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1, env={"HEADGATE_URL": url})


@promise("plans.command")
async def test_the_command_shows_a_team_at_work(headgate: str, research: str) -> None:
    """native.md §7: the answer on standard output, the others' doings in few words beside it, each once."""
    process = await started(headgate, "submit", "--model", research, QUESTION)
    out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, ANSWER + "\n")
    run, *lines, summary = err.decode().splitlines()
    assert run.startswith("run task-")
    assert summary.startswith("finish reason: stop, ")
    assert lines[:3] == ["0% planner started", "33% planner completed", "33% researchers started"]
    branches = lines[3:-3]
    assert {line.split(" ", 1)[1] for line in branches} == {
        f"{name} {status} (branch {number} of 3)"
        for number, name in enumerate(("known", "doubted", "open"), 1)
        for status in ("started", "completed")
    }
    assert [line.split()[0] for line in branches if " completed " in line] == ["44%", "56%", "67%"]
    assert lines[-3:] == ["67% researchers completed", "67% writer started", "100% writer completed"]


@promise("plans.command")
@pytest.mark.parametrize("approved", [True, False], ids=["approved", "denied"])
async def test_the_command_decides(headgate: str, review: str, approved: bool) -> None:
    """native.md §7: it prints the very command that decides, which somebody types elsewhere."""
    process = await started(headgate, "submit", "--model", review, "Version 1.0")
    assert process.stderr is not None
    async with asyncio.timeout(WAIT_S):
        while not (line := (await process.stderr.readline()).decode()).startswith("approval wanted"):
            assert line, "the command ended"
        command = line.partition("headgate approve ")[2].split()
        assert command[1:] == ["publish", "[--deny]"]
        other = await started(headgate, "approve", *command[:2], *([] if approved else ["--deny"]))
        await other.communicate()
        out, err = await process.communicate()
    assert other.returncode == 0
    assert process.returncode == (0 if approved else 1)
    assert out.decode() == (f"Sent, as approved by anonymous: {NOTICE}\n" if approved else "")
    assert f"publish was {'approved' if approved else 'denied'}" in err.decode().splitlines()


@promise("plans.tools")
def test_a_teams_tools_and_its_clients_go_together(client: OpenAI, here: Server) -> None:
    """orchestration.md §1: the client's tool ends the turn; in the next one the agent calls one of its own, and answers."""
    prompt = script('call get_weather {"city": "Rome"}', "then", 'call weather {"city": "Paris"}', "then", 'say "Sunny in both."')
    messages: Any = user(prompt)
    asked = client.chat.completions.create(model="team-equipped", messages=messages, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    assert asked.choices[0].message.tool_calls is not None
    (call,) = asked.choices[0].message.tool_calls
    assert call.to_dict()["function"] == {"name": "get_weather", "arguments": '{"city": "Rome"}'}
    messages += [asked.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    with client.chat.completions.stream(model="team-equipped", messages=messages, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        answered = stream.get_final_completion()
    message = answered.choices[0].message
    assert (message.content, message.tool_calls, answered.choices[0].finish_reason) == ("Sunny in both.", None, "stop")
    log = seen(DOORS["websocket"], here, "task-" + answered.id.removeprefix("chatcmpl-"))
    assert [event["payload"]["tool"] for event in log if event["type"] == "TOOL_INVOKED"] == ["weather"]
