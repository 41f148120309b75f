"""Headgate's own client and command against a running Headgate."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

import headgate as package
from compat_tests.conftest import unused_port
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.publisher import publish
from compat_tests.raw import script
from compat_tests.served import ALICE, MALLORY, Shape, served
from headgate import AsyncClient, Backoff, Client, Event
from headgate.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    StreamGap,
    TaskCancelled,
    TaskFailed,
    Unauthorized,
    WaitTimedOut,
)
from headgate.reading import Transport

WHOLE = script('tokens "one" " two"', "usage 3 2")
RICH = script('reason "why"', 'tokens "\\u2028é\\n\\"" " two"', 'call get {"a": 1}')
HANGING = script('tokens "a" "b"', "hang")
SAID = ["WORKFLOW_STARTED", "AGENT_STARTED", "LLM_PARTIAL", "LLM_PARTIAL", "LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED"]
MISSING = "task-" + "0" * 32


@pytest.fixture
async def client(headgate: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(headgate, timeout_s=20.0) as client:
        yield client


@pytest.fixture(params=["sse", "ws"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


async def completed(client: AsyncClient, query: str = WHOLE, **options: Any) -> str:
    task = await client.submit(query, model="demo-none", **options)
    await task.wait(20.0)
    return task.task_id


async def collected(client: AsyncClient, task_id: str, **options: Any) -> list[Event]:
    async with asyncio.timeout(20):
        return [event async for event in client.stream(task_id, **options)]


@promise("client.submit")
async def test_submit_and_wait(client: AsyncClient, model: str) -> None:
    """native.md §7."""
    task, stream = await client.submit_and_stream(
        WHOLE, model=model, session_id="session-1", context={"a": 1}, metadata={"b": 2}, mode="simple", idempotency_key=model
    )
    assert (task.task_id, task.session_id) == (task.workflow_id, "session-1")
    assert [event.type async for event in stream] == [*SAID, "STREAM_END"]
    assert await task.result(20.0) == "one two"
    found = await task.wait(20.0)
    assert found == await client.get(task.task_id)
    assert (found.status, found.ended, found.result, found.progress) == ("COMPLETED", True, "one two", 1.0)
    assert (found.model_used, found.query, found.session_id) == (model, WHOLE, "session-1")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (3, 2, 5)
    assert found.metadata is not None
    assert found.metadata["b"] == 2


@promise("client.submit")
async def test_a_task_without_a_result_says_why(client: AsyncClient) -> None:
    """native.md §7: typed errors."""
    failing = await client.submit(script('tokens "a"', "cut"), model="demo-none")
    with pytest.raises(TaskFailed) as failed:
        await failing.result(20.0)
    assert failed.value.code == "upstream_cut"
    hanging = await client.submit(HANGING, model="wire")
    with pytest.raises(WaitTimedOut):
        await hanging.wait(0.1)
    await hanging.cancel("enough")
    with pytest.raises(TaskCancelled, match="enough"):
        await hanging.result(20.0)


@promise("client.stream")
async def test_text_and_payloads_arrive_intact(client: AsyncClient, transport: Transport) -> None:
    """native.md §1, §7: what the log has is what the client gives, over either transport."""
    task_id = await completed(client, RICH)
    events = await collected(client, task_id, transport=transport)
    page = await client.events(task_id, limit=1000)
    assert page.complete
    assert events[:-1] == page.events[:-1]
    assert events[-1].stream_id == page.events[-1].stream_id
    text = "".join(event.message or "" for event in events if event.type == "LLM_PARTIAL")
    assert text == '\u2028é\n" two'
    whole = next(event for event in events if event.type == "LLM_OUTPUT")
    assert whole.message == text
    assert whole.payload is not None
    assert whole.payload["tool_calls"][0]["function"]["name"] == "get"


@promise("client.resume")
async def test_goes_on_after_any_position_on_any_replica(client: AsyncClient, brisk: str, transport: Transport) -> None:
    """native.md §7, P5, P8."""
    task_id = await completed(client, RICH)
    events = await collected(client, task_id)
    async with AsyncClient(brisk, ALICE) as replica:
        for count in range(len(events) + 1):
            for position in (events[count - 1].stream_id, events[count - 1].seq) if count else (None, "", 0):
                options = {} if position is None else {"last_event_id": position}
                rest = await collected(replica, task_id, transport=transport, **options)
                assert [event.stream_id for event in rest] == [event.stream_id for event in events[count:]]
        elsewhere = f"{int(events[3].stream_id.partition('-')[0]) + 1}-4"
        with pytest.raises(StreamGap) as gap:
            await collected(replica, task_id, transport=transport, last_event_id=elsewhere)
        assert gap.value.resumes_at == 1
        skipped = await collected(replica, task_id, transport=transport, last_event_id=elsewhere, gaps="skip")
        assert [event.seq for event in skipped] == [event.seq for event in events]


@promise("client.restart")
def test_a_stream_outlives_its_server(
    config: dict[str, Any], headgate: str, shape: Shape, transport: Transport, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """native.md §7: the server is stopped in the middle, a replica finishes the run, and another server takes the address."""
    port = unused_port()
    config = {**config, "server": {"port": port}, "grpc": {"enabled": False}}
    with Client(f"http://127.0.0.1:{port}", backoff=Backoff(first_s=0.1)) as client:
        with served(config, tmp_path_factory.mktemp("first"), shape):
            task = client.submit(script("rate 30/s", "say 40 words"), model="demo")
            stream = task.stream(transport=transport)
            events = [next(stream) for _ in range(6)]
        with served(config, tmp_path_factory.mktemp("second"), shape):
            events += stream
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert (events[-2].type, events[-1].type) == ("WORKFLOW_COMPLETED", "STREAM_END")
            assert client.events(task.task_id, limit=1000).events[:-1] == events[:-1]


@promise("client.filter")
async def test_filters(client: AsyncClient, transport: Transport) -> None:
    """native.md §3: endings pass, and positions move over what was hidden."""
    task_id = await completed(client)
    events = await collected(client, task_id, transport=transport, types=["LLM_OUTPUT", "X_OWN"])
    assert [event.type for event in events] == ["LLM_OUTPUT", "WORKFLOW_COMPLETED", "STREAM_END"]
    page = await client.events(task_id, types=["LLM_OUTPUT"])
    assert [event.type for event in page.events] == ["LLM_OUTPUT"]
    with pytest.raises(InvalidRequest):
        await collected(client, task_id, transport=transport, types=["NO_SUCH_TYPE"])


@promise("client.leaving")
async def test_leaving_leaves_the_task_alone(client: AsyncClient, transport: Transport) -> None:
    """native.md §7: the connection is closed, and the task goes on."""
    task = await client.submit(script('tokens "a"', "wait 300ms", 'tokens "b"'), model="demo-none")
    async for event in task.stream(transport=transport):
        if event.type == "LLM_PARTIAL":
            break
    assert await task.result(20.0) == "ab"


@promise("client.control")
async def test_pause_resume_cancel(client: AsyncClient, transport: Transport) -> None:
    """native.md §5, §7."""
    task = await client.submit(script("rate 50/s", "say 1000 words"), model="demo")
    seen: list[str] = []
    async with asyncio.timeout(20):
        async for event in task.stream(transport=transport, types=["LLM_PARTIAL", "WORKFLOW_PAUSED", "WORKFLOW_RESUMED"]):
            if event.type not in seen:
                seen.append(event.type)
                match event.type:
                    case "LLM_PARTIAL":
                        assert (await task.pause("lunch")).success
                    case "WORKFLOW_PAUSED":
                        state = await client.control_state(task.task_id)
                        assert (state.is_paused, state.pause_reason) == (True, "lunch")
                        assert (await task.get()).status == "PAUSED"
                        await task.resume()
                    case "WORKFLOW_RESUMED":
                        await task.cancel("enough")
    assert seen == ["LLM_PARTIAL", "WORKFLOW_PAUSED", "WORKFLOW_RESUMED", "WORKFLOW_CANCELLED", "STREAM_END"]
    assert (await task.wait(20.0)).status == "CANCELLED"
    assert (await task.cancel()).success
    with pytest.raises(Conflict):
        await task.pause()


@promise("client.approve")
async def test_approvals(client: AsyncClient, config: dict[str, Any], mark: str) -> None:
    """native.md §5, §7: listed while they are pending; decided once."""
    session = "session-" + mark.removeprefix("# ")
    task = await client.submit(HANGING, model="wire", session_id=session)
    wanted = {"approval_id": "approval-1", "proposed_action": "send it", "reason": "it costs money"}
    publish(config["grpc"]["port"], task.task_id, "APPROVAL_REQUESTED", wanted)
    (pending,) = await client.approvals(session)
    assert (pending.workflow_id, pending.approval_id, pending.proposed_action) == (task.task_id, "approval-1", "send it")
    decided = await client.approve(task.task_id, "approval-1", approved=False, feedback="too dear")
    assert decided.success
    assert await client.approvals(session) == []
    with pytest.raises(Conflict):
        await client.approve(task.task_id, "approval-1")
    (decision,) = (await client.events(task.task_id, types=["APPROVAL_DECISION"])).events
    assert decision.payload is not None
    assert (decision.payload["approved"], decision.payload["feedback"]) == (False, "too dear")
    await task.cancel()


@promise("client.lists")
async def test_lists(client: AsyncClient, mark: str) -> None:
    """native.md §5, §7."""
    session = "session-" + mark.removeprefix("# ")
    first, second = [await completed(client, session_id=session) for _ in range(2)]
    listed = await client.list(session_id=session, status="COMPLETED", limit=1)
    assert ([task.task_id for task in listed.tasks], listed.total_count) == ([second], 2)
    page = await client.events(first, limit=3)
    rest = await client.events(first, after=page.next_after)
    assert [event.seq for event in [*page.events, *rest.events]] == list(range(1, 9))
    assert (page.complete, rest.complete) == (False, True)
    durable = await client.submit(WHOLE, model="demo")
    await durable.wait(20.0)
    assert (await client.timeline(durable.task_id))[0].type == "WF_STARTED"
    assert await client.timeline(first, full=True) == []
    assert (await client.session(session)).task_count == 2
    listed = await client.sessions(limit=100)
    assert session in [each.session_id for each in listed.sessions]
    assert listed.total_count >= len(listed.sessions)
    assert [task.task_id for task in (await client.session_history(session)).tasks] == [first, second]
    turns = await client.session_events(session, limit=1)
    assert (turns.count, turns.turns[0].task_id, turns.turns[0].events[0].type) == (2, first, "WORKFLOW_STARTED")
    assert (await client.rename_session(session, "Mine")).title == "Mine"
    await client.delete_session(session)
    with pytest.raises(NotFound):
        await client.session(session)
    assert "demo" in [model.id for model in await client.models()]
    health = await client.health()
    assert health.ready
    assert health.dependencies["redis"].ok


@promise("client.errors")
async def test_what_is_refused_is_told_at_once(client: AsyncClient, brisk: str, transport: Transport) -> None:
    """native.md §7: 401, 403 and 404 raise, on requests and on streams; so does whatever else is the caller's mistake."""
    task_id = await completed(client)
    for missing in (MISSING, "anything", "../../health"):
        with pytest.raises(NotFound):
            await client.get(missing)
        with pytest.raises(NotFound):
            await collected(client, missing, transport=transport)
    with pytest.raises(InvalidRequest):
        await collected(client, task_id, transport=transport, last_event_id="nowhere")
    with pytest.raises(InvalidRequest) as refused:
        await client.submit(" ")
    assert (refused.value.status, bool(refused.value.request_id)) == (422, True)
    for key, error in (("nobody's", Unauthorized), (None, Unauthorized), (MALLORY, NotFound)):
        async with AsyncClient(brisk, key) as stranger:
            with pytest.raises(error):
                await stranger.get(task_id)
            with pytest.raises(error):
                await collected(stranger, task_id, transport=transport)
    assert issubclass(Forbidden, package.Refused)


@promise("client.sync")
def test_the_client_for_ordinary_programs(headgate: str, transport: Transport) -> None:
    """native.md §7."""
    with Client(headgate) as client:
        task, stream = client.submit_and_stream(WHOLE, model="demo-none")
        assert [event.type for event in stream] == [*SAID, "STREAM_END"]
        assert task.result(20.0) == "one two"
        again = client.stream(task.task_id, transport=transport)
        assert next(again).type == "WORKFLOW_STARTED"
        assert [event.seq for event in client.stream(task.task_id, last_event_id=again.position)] == list(range(2, 9))
        assert [event.seq for event in again] == list(range(2, 9))
        assert client.list(limit=1).total_count > 0
        with pytest.raises(NotFound):
            client.get(MISSING)


async def command(url: str, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headgate", *arguments, stdout=-1, stderr=-1, env={"HEADGATE_URL": url}
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@promise("command.watches")
async def test_the_command(headgate: str, client: AsyncClient, config: dict[str, Any], mark: str) -> None:
    """native.md §7: for people and for programs."""
    session = "session-" + mark.removeprefix("# ")
    code, out, err = await command(headgate, "submit", "--model", "demo", "--session", session, WHOLE)
    assert (code, out) == (0, "one two\n")
    run, summary = err.splitlines()
    task_id = run.removeprefix("run ")
    assert summary == "finish reason: stop, 3 + 2 tokens"
    assert await command(headgate, "stream", task_id) == (0, "one two\n", summary + "\n")
    code, out, err = await command(headgate, "stream", "--json", "--after", "5", task_id)
    events = await collected(client, task_id, last_event_id=5)
    assert (code, [json.loads(line) for line in out.splitlines()]) == (0, [msgspec.to_builtins(each) for each in events])
    code, out, _ = await command(headgate, "list", "--session", session)
    assert [line.split()[:2] for line in out.splitlines()] == [["TASK", "STATUS"], [task_id, "COMPLETED"]]
    assert "COMPLETED" in (await command(headgate, "status", task_id))[1]
    assert json.loads((await command(headgate, "status", "--json", task_id))[1])["result"] == "one two"
    code, out, err = await command(headgate, "cancel", task_id)
    assert (code, out) == (1, "")
    assert err.startswith("headgate: ")
    code, out, _ = await command(headgate, "submit", "--detach", "--model", "wire", HANGING)
    publish(config["grpc"]["port"], out.strip(), "APPROVAL_REQUESTED", {"approval_id": "approval-1", "proposed_action": "go"})
    assert "approval-1" in (await command(headgate, "approvals"))[1]
    assert (await command(headgate, "approve", out.strip(), "approval-1", "--deny"))[0] == 0
    assert (await command(headgate, "cancel", out.strip(), "--reason", "enough"))[0] == 0
    code, _, err = await command(headgate, "stream", out.strip())
    assert (code, err.splitlines()[-1]) == (1, "headgate: The run was cancelled: enough")


@promise("command.watches")
async def test_ctrl_c_cancels_down_to_the_upstream(headgate: str, model_server: ModelServer, mark: str) -> None:
    """native.md §7: whoever interrupts `submit` wants nothing more."""
    query = script('tokens "a" "b"', "hang", mark)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "submit", "--url", headgate, "--model", "wire", query), stdout=-1, stderr=-1
    )
    assert process.stdout is not None
    assert await process.stdout.readexactly(2) == b"ab"
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    async with AsyncClient(headgate) as client:
        with pytest.raises(TaskCancelled, match="interrupted"):
            await client.result(err.decode().split()[1], 20.0)
    assert (await asyncio.to_thread(model_server.ending, query)) == "cancelled"
