"""Progress, executions and merged streams, as the clients give them: against a server that loses connections, and a real one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from headgate import AsyncClient, Backoff, Client, Loss, Progress
from headgate.errors import BadAnswer, Conflict, Forbidden, NotFound, ServerGone, StreamGap
from tests.gateway.http.conftest import serving as serving_for_real
from tests.gateway.http.plans import PLANS, agent, keyed
from tests.headgate.flaky import AT, EVENTS, MS, RUN, FlakyServer, cut_after, event, refuse, serving, whole
from tests.headgate.test_client import threaded
from tests.orchestrator.engines import an_engine

AT_ONCE = Backoff(first_s=0.0)


def step(seq: int, name: str, status: str, progress: float, **more: Any) -> Any:
    facts = {"step_name": name, "step_index": 0, "step_type": "agent" if name else "", "status": status, "progress": progress}
    return event(seq, "progress", **facts, **more)


STEPS = (
    step(1, "", "started", 0.0, input="q"),
    step(3, "left", "started", 0.0, parallel_index=0, parallel_total=2),
    step(4, "left", "completed", 1.0, output="l", field_of_tomorrow=1),
    step(6, "", "completed", 1.0, result={"success": True, "output": "l", "usage": {"prompt_tokens": 3}}),
    event(7, "STREAM_END"),
)


def client(url: str, **options: Any) -> AsyncClient:
    return AsyncClient(url, **{"backoff": AT_ONCE, **options})


async def test_each_step_comes_once_whatever_was_cut() -> None:
    server = FlakyServer(cut_after(1, 9), refuse, cut_after(0, 40), whole, events=STEPS)
    losses: list[Loss] = []
    async with serving(server) as url, client(url) as headgate:
        watch = headgate.progress(RUN, on_loss=losses.append)
        steps = [each async for each in watch]
    assert steps[1] == Progress(
        workflow_id=RUN,
        step_name="left",
        step_index=0,
        step_type="agent",
        status="started",
        progress=0.0,
        parallel_index=0,
        parallel_total=2,
        timestamp=AT,
        seq=3,
    )
    assert [(each.step_name, each.status, each.seq) for each in steps] == [
        ("", "started", 1),
        ("left", "started", 3),
        ("left", "completed", 4),
        ("", "completed", 6),
    ]
    assert steps[3].result is not None
    assert steps[3].result.usage is not None
    assert (steps[3].result.output, steps[3].result.usage.prompt_tokens) == ("l", 3)
    assert watch.position == f"{MS}-6"
    asked = f"/api/v1/stream/progress?workflow_id={RUN}"
    assert [path for _, path in server.requests] == [asked] + [f"{asked}&last_event_id={MS}-1"] * 3
    assert len(losses) == 3


async def test_its_position_is_that_of_the_last_step_given_out() -> None:
    async with serving(FlakyServer(events=STEPS)) as url, client(url) as headgate:
        watch = headgate.progress(RUN)
        await anext(watch)
        assert watch.position == f"{MS}-1"
        await watch.aclose()
        assert [each.seq async for each in headgate.progress(RUN, last_event_id=watch.position)] == [3, 4, 6]


async def test_several_tasks_in_one_stream() -> None:
    server = FlakyServer(cut_after(2), whole)
    async with serving(server) as url, client(url) as headgate:
        kinds = [each.type async for each in headgate.stream_many([RUN, RUN])]
    assert kinds == [each["type"] for each in EVENTS[:-1]]
    assert server.requests[0][1] == f"/api/v1/stream/multi?workflow_ids={RUN},{RUN}"


async def test_what_a_stream_says_about_itself() -> None:
    def says(*frames: bytes) -> Any:
        return lambda due: frames

    gap = b'event: STREAM_GAP\ndata: {"workflow_id":"t","type":"STREAM_GAP","payload":{"missing_from":2}}\n\n'
    broken = b'event: ERROR_OCCURRED\ndata: {"scope":"stream","code":"x","message":"No.","retryable":false}\n\n'
    draining = broken.replace(b"false", b"true")
    server = FlakyServer(says(gap), says(b"event: progress\ndata: {\n\n"), says(draining), whole)
    async with serving(server) as url, client(url) as headgate:
        with pytest.raises(StreamGap):
            [each async for each in headgate.stream_many([RUN])]
        with pytest.raises(BadAnswer):
            [each async for each in headgate.progress(RUN)]
        assert len([each async for each in headgate.stream_many([RUN])]) == len(EVENTS) - 1
    async with serving(FlakyServer(says(broken), events=STEPS)) as url, client(url) as headgate:
        with pytest.raises(Exception, match="No\\."):
            [each async for each in headgate.progress(RUN)]
    async with client(url) as headgate:
        with pytest.raises(ServerGone):
            [each async for each in headgate.progress(RUN)]


def test_ordinary_programs_watch_as_well() -> None:
    server = FlakyServer(cut_after(2), whole, events=STEPS)
    with threaded(server) as url, Client(url, backoff=AT_ONCE) as headgate, headgate.progress(RUN) as watch:
        assert next(iter(watch)).step_name == ""
        assert [each.seq for each in watch] == [3, 4, 6]
        assert watch.position == f"{MS}-6"
    with threaded(FlakyServer()) as url, Client(url, backoff=AT_ONCE) as headgate:
        assert len(list(headgate.stream_many([RUN]))) == len(EVENTS) - 1


async def test_executing_for_real() -> None:
    """A plan by its name, one of our own, and what is refused."""
    async with an_engine(models=PLANS) as engine, serving_for_real(keyed(), engine) as server:
        async with client(server.url, api_key="sk-a") as headgate:
            task = await headgate.execute("two", "go", session_id="s-1", workflow_id=RUN)
            assert (task.task_id, task.session_id) == (RUN, "s-1")
            steps = [each async for each in task.progress()]
            assert [(each.step_name, each.status) for each in steps] == [
                ("", "started"),
                ("first", "started"),
                ("first", "completed"),
                ("second", "started"),
                ("second", "completed"),
                ("", "completed"),
            ]
            assert await task.result() == "one two"
            with pytest.raises(Conflict):
                await headgate.execute("two", "go", workflow_id=RUN)
            with pytest.raises(NotFound):
                await headgate.execute("nothing")
            other = await headgate.execute("branches", {"word": "go"}, metadata={"ticket": "7"}, idempotency_key="k")
            again = await headgate.execute("branches", {"word": "go"}, metadata={"ticket": "7"}, idempotency_key="k")
            assert again.task_id == other.task_id
            told = [each async for each in headgate.stream_many([task.task_id, other.task_id])]
            assert [each.type for each in told].count("STREAM_END") == 2
        async with client(server.url, api_key="sk-c") as headgate:
            with pytest.raises(Forbidden):
                await headgate.execute({"steps": [agent("only", "")]}, "go")


async def test_who_stops_watching_stops_nothing() -> None:
    async with (
        an_engine(models=PLANS) as engine,
        serving_for_real(keyed(), engine) as server,
        client(server.url, api_key="sk-a") as headgate,
    ):
        task = await headgate.execute("hangs")
        async for each in task.progress():
            if each.step_name == "stuck":
                break
        assert (await task.get()).status == "RUNNING"
        await task.cancel()
        async with asyncio.timeout(5):
            assert [each.status async for each in task.progress()][-1] == "cancelled"
