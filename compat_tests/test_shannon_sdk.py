"""The `shannon-sdk` package from PyPI, unmodified, against a running Headgate: each call that its users make."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from shannon import AsyncShannonClient, ShannonClient, errors
from shannon.models import Event, EventType, OpenAIChatMessage, TaskStatusEnum

from compat_tests.manifest import promise
from compat_tests.publisher import publish
from compat_tests.raw import script
from compat_tests.served import ALICE, MALLORY
from headgate import AsyncClient

HANGING = script('tokens "a" "b"', "hang")
SAID = ["WORKFLOW_STARTED", "AGENT_STARTED", "LLM_PARTIAL", "LLM_PARTIAL", "LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED"]
MISSING = "task-" + "0" * 32


@pytest.fixture
async def shannon(headgate: str) -> AsyncIterator[AsyncShannonClient]:
    async with AsyncShannonClient(headgate, default_timeout=20.0) as client:
        yield client


async def completed(client: AsyncShannonClient, query: str = script('tokens "one" " two"'), **options: Any) -> str:
    handle = await client.submit_task(query, model_override="demo-none", **options)
    await client.wait(handle.task_id, timeout=20.0, poll_interval=0.02)
    return handle.task_id


async def until(client: AsyncShannonClient, task_id: str, type: str) -> None:
    """Returns once the task has said an event of this type. Not by the SDK, which closes a stream only at its end."""
    async with asyncio.timeout(20), AsyncClient(client.base_url) as reader, reader.stream(task_id) as events:
        async for event in events:
            if event.type == type:
                return
    raise AssertionError(f"it ended without {type}")


@promise("shannon.submit")
async def test_submit_and_wait(shannon: AsyncShannonClient, mark: str) -> None:
    """native.md §7: every option that the SDK has; the model through the only one that names one."""
    handle = await shannon.submit_task(
        script('tokens "one" " two"', mark),
        session_id="session-of-submit",
        context={"system_prompt": "Be brief.", "role": "writer"},
        idempotency_key=mark.removeprefix("# "),
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        model_override="demo",
        provider_override="openai",
        mode="simple",
        force_swarm=True,
    )
    assert handle.task_id == handle.workflow_id
    assert handle.session_id == "session-of-submit"
    status = await shannon.wait(handle.task_id, timeout=20.0, poll_interval=0.02)
    assert (status.status, status.result) == (TaskStatusEnum.COMPLETED, "one two")


@promise("shannon.submit")
async def test_submit_without_naming_a_model(shannon: AsyncShannonClient) -> None:
    """native.md §7: the SDK's own examples name none; the server has a default."""
    handle = await shannon.submit_task("Hello", model_tier="small")
    assert handle.session_id
    status = await shannon.wait(handle.task_id, timeout=20.0, poll_interval=0.02)
    assert status.status == TaskStatusEnum.COMPLETED
    assert "Hello" in (status.result or "")


@promise("shannon.submit-and-stream")
async def test_submit_and_stream(shannon: AsyncShannonClient, headgate: str) -> None:
    """native.md §5, §7: the address leads to the task's events."""
    handle, url = await shannon.submit_and_stream(script('tokens "one"'), model_override="demo-none")
    async with httpx.AsyncClient(base_url=headgate) as client:
        answer = await client.get(url)
    assert answer.headers["X-Workflow-ID"] == handle.workflow_id
    assert answer.text.endswith("data: [DONE]\n\n")


@promise("shannon.status")
async def test_status(shannon: AsyncShannonClient) -> None:
    """native.md §5, §7."""
    status = await shannon.get_status(await completed(shannon, session_id="session-of-status"))
    assert (status.workflow_id, status.progress, status.session_id) == (status.task_id, 1.0, "session-of-status")
    assert (status.model_used, status.result) == ("demo-none", "one two")
    assert status.query == script('tokens "one" " two"')
    assert status.created_at is not None
    assert status.created_at.tzinfo is not None
    assert status.usage is not None
    assert status.usage["completion_tokens"] == 2
    failed = await shannon.get_status(await completed(shannon, script('tokens "a"', "cut")))
    assert (failed.status, failed.result) == (TaskStatusEnum.FAILED, None)
    assert failed.error_message
    running = await shannon.submit_task(HANGING, model_override="wire-none")
    await until(shannon, running.task_id, "LLM_PARTIAL")
    assert (await shannon.get_status(running.task_id)).status == TaskStatusEnum.RUNNING
    await shannon.cancel(running.task_id)


@promise("shannon.list")
async def test_list_tasks(shannon: AsyncShannonClient, mark: str) -> None:
    """native.md §5, §7."""
    session = "session-" + mark.removeprefix("# ")
    ids = [await completed(shannon, session_id=session) for _ in range(3)]
    tasks, total = await shannon.list_tasks(session_id=session, status="COMPLETED", limit=2)
    assert ([task.task_id for task in tasks], total) == (ids[:0:-1], 3)
    assert tasks[0].completed_at is not None
    assert tasks[0].completed_at >= tasks[0].created_at
    rest, _ = await shannon.list_tasks(session_id=session, limit=2, offset=2)
    assert [task.task_id for task in rest] == ids[:1]
    assert await shannon.list_tasks(session_id=session, status="FAILED") == ([], 0)


@promise("shannon.stream")
async def test_stream(shannon: AsyncShannonClient) -> None:
    """native.md §3, §7: every event, with its text; the end is the SDK's `done`."""
    task_id = await completed(shannon)
    events = [event async for event in shannon.stream(task_id)]
    assert [event.type for event in events] == [*SAID, EventType.STREAM_END]
    assert [event.message for event in events if event.type == EventType.LLM_PARTIAL] == ["one", " two"]
    assert [event.seq for event in events[:-1]] == list(range(1, 8))
    assert {event.workflow_id for event in events} == {task_id}
    assert all(event.timestamp.tzinfo is not None for event in events[:-1])


@promise("shannon.stream")
async def test_stream_goes_on_after_a_position(shannon: AsyncShannonClient) -> None:
    """native.md §3, §7: by `stream_id` and by `seq`, the two that the SDK has for an id."""
    task_id = await completed(shannon)
    events = [event async for event in shannon.stream(task_id)]
    for position in (events[3].id, str(events[3].seq)):
        rest = [event async for event in shannon.stream(task_id, last_event_id=position)]
        assert [event.id for event in rest] == [event.id for event in events[4:]]


@promise("shannon.stream")
async def test_stream_filtered(shannon: AsyncShannonClient) -> None:
    """native.md §3, §7: also by the names that the SDK has for types, which are those of the event stream."""
    task_id = await completed(shannon)

    async def types(*wanted: str | EventType) -> list[str]:
        return [event.type async for event in shannon.stream(task_id, types=list(wanted))]

    assert await types(EventType.LLM_OUTPUT) == ["LLM_OUTPUT", "WORKFLOW_COMPLETED", "done"]
    assert await types(EventType.THREAD_MESSAGE_COMPLETED, "AGENT_STARTED") == ["AGENT_STARTED", *SAID[4:5], *SAID[6:], "done"]
    assert await types(EventType.WORKFLOW_PAUSED, EventType.STREAM_END) == ["WORKFLOW_COMPLETED", "done"]
    assert await types(*EventType) == [*SAID, "done"]


@promise("shannon.stream")
async def test_stream_of_a_living_task(shannon: AsyncShannonClient) -> None:
    """native.md §3, §7: replay, then live, to the ending."""
    handle = await shannon.submit_task(HANGING, model_override="wire")
    seen: list[str] = []
    async for event in shannon.stream(handle.workflow_id):
        seen.append(event.type)
        if seen.count("LLM_PARTIAL") == 2 and "WORKFLOW_CANCELLING" not in seen and event.type == "LLM_PARTIAL":
            assert await shannon.cancel(handle.task_id)
    assert seen[-2:] == ["WORKFLOW_CANCELLED", "done"]


@promise("shannon.stream-ws")
async def test_stream_ws(shannon: AsyncShannonClient) -> None:
    """native.md §4, §7: what SSE has, to the closing of the socket."""
    task_id = await completed(shannon)
    sse = [event async for event in shannon.stream(task_id)]
    events = [event async for event in shannon.stream_ws(task_id)]
    assert [event.type for event in events] == [*SAID, "STREAM_END"]
    assert events[:-1] == sse[:-1]
    rest = [event async for event in shannon.stream_ws(task_id, last_event_id=events[4].id, types=[EventType.WORKFLOW_PAUSED])]
    assert rest == events[6:]


@promise("shannon.events")
async def test_history(shannon: AsyncShannonClient) -> None:
    """native.md §5, §7."""
    task_id = await completed(shannon)
    events = await shannon.get_task_events(task_id)
    assert [event.type for event in events] == [*SAID, "STREAM_END"]
    assert all(isinstance(event, Event) and event.stream_id for event in events)
    durable = await shannon.submit_task(script('tokens "one"'), model_override="demo")
    await shannon.wait(durable.task_id, timeout=20.0, poll_interval=0.02)
    timeline = await shannon.get_task_timeline(durable.task_id)
    assert timeline["events"][0]["type"] == "WF_STARTED"


@promise("shannon.cancel")
@pytest.mark.parametrize("model", ["wire", "wire-none"])
async def test_cancel(shannon: AsyncShannonClient, model: str) -> None:
    """native.md §5, §7: twice is once; too late is an error."""
    handle = await shannon.submit_task(HANGING, model_override=model)
    await until(shannon, handle.task_id, "LLM_PARTIAL")
    assert await shannon.cancel(handle.task_id, reason="changed my mind")
    assert (await shannon.wait(handle.task_id, timeout=20.0, poll_interval=0.02)).status == TaskStatusEnum.CANCELLED
    state = await shannon.get_control_state(handle.task_id)
    assert (state.is_cancelled, state.cancel_reason) == (True, "changed my mind")
    assert await shannon.cancel(handle.task_id)
    with pytest.raises(errors.ConnectionError, match="409"):
        await shannon.cancel(await completed(shannon))


@promise("shannon.pause")
async def test_pause_and_resume(shannon: AsyncShannonClient) -> None:
    """native.md §5, §7: PAUSED when it stands still, and on again."""
    handle = await shannon.submit_task(script("rate 50/s", "say 40 words"), model_override="demo")
    await until(shannon, handle.task_id, "LLM_PARTIAL")
    assert await shannon.pause_task(handle.task_id, reason="lunch")
    seen = []
    async for event in shannon.stream(handle.task_id, types=["WORKFLOW_PAUSED", "WORKFLOW_RESUMED"]):
        seen.append(event.type)
        if event.type == "WORKFLOW_PAUSED":
            state = await shannon.get_control_state(handle.task_id)
            assert (state.is_paused, state.pause_reason, state.is_cancelled) == (True, "lunch", False)
            assert state.paused_at is not None
            assert (await shannon.get_status(handle.task_id)).status == TaskStatusEnum.PAUSED
            assert await shannon.resume_task(handle.task_id, reason="done")
    assert seen == ["WORKFLOW_PAUSED", "WORKFLOW_RESUMED", "WORKFLOW_COMPLETED", "done"]
    with pytest.raises(errors.ConnectionError, match="409"):
        await shannon.resume_task(handle.task_id)


@promise("shannon.approve")
async def test_approve(shannon: AsyncShannonClient, config: dict[str, Any]) -> None:
    """native.md §5, §7. The SDK reads a payload out of the message, so a worker that serves it puts it there too."""
    handle = await shannon.submit_task(HANGING, model_override="wire")
    wanted = {"approval_id": "approval-1", "proposed_action": "send it"}
    publish(config["grpc"]["port"], handle.task_id, "APPROVAL_REQUESTED", wanted, message=json.dumps(wanted))
    decided: list[Any] = []
    async for event in shannon.stream(handle.workflow_id, types=[EventType.APPROVAL_REQUESTED, EventType.APPROVAL_DECISION]):
        if event.type == EventType.APPROVAL_REQUESTED:
            assert event.payload == wanted
            assert await shannon.approve(event.payload["approval_id"], handle.workflow_id, approved=False, feedback="no")
        elif event.type == EventType.APPROVAL_DECISION:
            decided.append(event)
            with pytest.raises(errors.ConnectionError, match="409"):
                await shannon.approve("approval-1", handle.workflow_id)
            await shannon.cancel(handle.task_id)
    assert len(decided) == 1


@promise("shannon.chat")
async def test_chat_completion(shannon: AsyncShannonClient, mark: str) -> None:
    """native.md §7: whole, in the session that the SDK names in a header."""
    session = "session-" + mark.removeprefix("# ")
    completion = await shannon.create_chat_completion(
        [OpenAIChatMessage("system", "Be brief."), {"role": "user", "content": script('tokens "one" " two"')}],
        model="demo-none",
        max_tokens=100,
        temperature=0.5,
        user="me",
        shannon_options={"model_tier": "small"},
        session_id=session,
    )
    message = completion.choices[0].message
    assert message is not None
    assert (message.role, message.content, completion.choices[0].finish_reason) == ("assistant", "one two", "stop")
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2
    assert (await shannon.get_session(session)).task_count == 1


@promise("shannon.chat")
async def test_chat_completion_streamed(shannon: AsyncShannonClient) -> None:
    """native.md §7."""
    chunks = [
        chunk
        async for chunk in shannon.stream_chat_completion(
            [OpenAIChatMessage("user", script('tokens "one" " two"'))], model="demo-none", include_usage=True
        )
    ]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.delta is not None]
    assert "".join(delta.content or "" for delta in deltas) == "one two"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


@promise("shannon.models")
async def test_models(shannon: AsyncShannonClient) -> None:
    """native.md §7."""
    assert [model.id for model in await shannon.list_openai_models()][:2] == ["demo", "demo-none"]
    assert (await shannon.get_openai_model("demo")).id == "demo"


@promise("shannon.sessions")
async def test_sessions(shannon: AsyncShannonClient, mark: str) -> None:
    """native.md §5, §7."""
    session = "session-" + mark.removeprefix("# ")
    ids = [await completed(shannon, session_id=session) for _ in range(2)]
    found = await shannon.get_session(session)
    assert (found.session_id, found.task_count, found.user_id) == (session, 2, "default")
    listed, _ = await shannon.list_sessions(limit=100)
    assert session in [each.session_id for each in listed]
    history = await shannon.get_session_history(session)
    assert [(turn.task_id, turn.result, turn.status) for turn in history] == [(each, "one two", "COMPLETED") for each in ids]
    assert history[0].tokens_used > 0
    turns, count = await shannon.get_session_events(session, limit=1, offset=1)
    assert (count, [(turn.turn, turn.task_id, turn.final_output) for turn in turns]) == (2, [(2, ids[1], "one two")])
    assert [event.type for event in turns[0].events] == [*SAID[:2], *SAID[4:], "STREAM_END"]
    assert await shannon.update_session_title(session, "Two words")
    assert (await shannon.get_session(session)).title == "Two words"
    assert await shannon.delete_session(session)
    with pytest.raises(errors.SessionNotFoundError):
        await shannon.get_session(session)


@promise("shannon.keys")
async def test_keys(brisk: str) -> None:
    """native.md §7: `X-API-Key` and `Authorization`, on requests, streams and sockets; a stranger finds nothing."""
    for key in ({"api_key": ALICE}, {"bearer_token": ALICE}):
        async with AsyncShannonClient(brisk, **key) as alice:
            task_id = await completed(alice)
            assert [event.type async for event in alice.stream(task_id)] == [*SAID, "done"]
            assert [event.type async for event in alice.stream_ws(task_id)] == [*SAID, "STREAM_END"]
    async with AsyncShannonClient(brisk, api_key=MALLORY) as mallory:
        with pytest.raises(errors.TaskNotFoundError):
            await mallory.get_status(task_id)
        assert [event async for event in mallory.stream(task_id)] == []  # how this SDK takes a 404
    async with AsyncShannonClient(brisk, api_key="nobody's") as nobody:
        with pytest.raises(errors.AuthenticationError):
            await nobody.get_status(task_id)


@promise("shannon.errors")
async def test_errors(shannon: AsyncShannonClient, brisk: str) -> None:
    """native.md §5, §7."""
    for missing in (MISSING, "anything"):
        for ask in (shannon.get_status, shannon.cancel, shannon.get_task_events, shannon.get_control_state):
            with pytest.raises(errors.TaskNotFoundError, match="No such run"):
                await ask(missing)
    with pytest.raises(errors.ValidationError):
        await shannon.list_tasks(limit=1000)
    async with AsyncShannonClient(brisk, api_key=ALICE) as alice:
        with pytest.raises(errors.ShannonError, match="404"):
            await alice.submit_task("Hello", model_override="no such model")


@promise("shannon.health")
async def test_health(shannon: AsyncShannonClient) -> None:
    """native.md §5, §7."""
    assert (await shannon.health())["status"] == "ok"
    assert (await shannon.readiness())["status"] == "ready"
    assert "/api/v1/tasks" in (await shannon.get_openapi_spec())["paths"]


@promise("shannon.sync")
def test_the_client_for_ordinary_programs(headgate: str) -> None:
    """native.md §7: it takes the loop of its thread, so it is given one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with ShannonClient(headgate) as client:
            handle = client.submit_task(script('tokens "one" " two"'), model_override="demo-none")
            assert [event.type for event in handle.stream()] == [*SAID, "done"]
            assert handle.result(timeout=20.0) == "one two"
            assert [event.type for event in client.stream_ws(handle.workflow_id)] == [*SAID, "STREAM_END"]
            chunks = list(client.stream_chat_completion([{"role": "user", "content": "Hi"}], model="demo-none"))
            assert chunks[-1].choices[0].finish_reason == "stop"
            hanging = client.submit_task(HANGING, model_override="wire-none")
            assert hanging.cancel(reason="enough")
    finally:
        asyncio.set_event_loop(None)
        loop.close()
