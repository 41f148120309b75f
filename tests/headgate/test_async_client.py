"""The asynchronous client against a server that loses connections."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import unused_port

from gateway.wire import rest_models, usage_report
from headgate import AsyncClient, Backoff, Loss, answers
from headgate.async_stream import AsyncEventStream
from headgate.calls import submit
from headgate.errors import BadAnswer, NotFound, ServerFailed, ServerGone, TaskCancelled, TaskFailed, TaskTimedOut, WaitTimedOut
from headgate.reading import Transport
from tests.headgate.flaky import EVENTS, MS, RUN, FlakyServer, cut_after, event, hang, refuse, serving, whole

AT_ONCE = Backoff(first_s=0.0)
TRANSPORTS: Sequence[Transport] = ("sse", "ws")


def client(url: str, **options: Any) -> AsyncClient:
    return AsyncClient(url, **{"backoff": AT_ONCE, **options})


async def collected(stream: AsyncEventStream) -> list[Any]:
    """As the server has them."""
    return [msgspec.to_builtins(each) async for each in stream]


def after(seq: int) -> str:
    return f"last_event_id={MS}-{seq}"


class TestStream:
    @pytest.mark.parametrize("extra_bytes", [0, 1, 6, 40])
    async def test_each_event_comes_once_whatever_was_cut(self, extra_bytes: int) -> None:
        plan = cut_after(2, extra_bytes), cut_after(0, extra_bytes), refuse, cut_after(1, extra_bytes), whole
        server = FlakyServer(*plan)
        losses: list[Loss] = []
        async with serving(server) as url, client(url) as headgate:
            assert await collected(headgate.stream(RUN, on_loss=losses.append)) == list(EVENTS)
        asked = f"/api/v1/stream/sse?workflow_id={RUN}"
        assert server.requests == [("GET", asked), *[("GET", f"{asked}&{after(seq)}") for seq in (2, 2, 2, 3)]]
        assert [(type(loss.error), loss.position) for loss in losses] == [
            (ServerGone, f"{MS}-2"),
            (ServerGone, f"{MS}-2"),
            (ServerFailed, f"{MS}-2"),
            (ServerGone, f"{MS}-3"),
        ]

    async def test_so_it_does_over_websocket(self) -> None:
        server = FlakyServer(cut_after(2), cut_after(0), refuse, cut_after(1), whole)
        async with serving(server) as url, client(url) as headgate:
            assert await collected(headgate.stream(RUN, transport="ws")) == list(EVENTS)
        assert [query.rpartition("?")[2] for _, query in server.requests] == [
            f"workflow_id={RUN}",
            *[f"workflow_id={RUN}&{after(seq)}" for seq in (2, 2, 2, 3)],
        ]

    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_its_position_is_that_of_the_last_event_given_out(self, transport: Transport) -> None:
        """Not of the last one received: events that wait to be given out would be lost by resuming after those."""
        async with serving(FlakyServer()) as url, client(url) as headgate:
            stream = headgate.stream(RUN, transport=transport, last_event_id=1)
            assert stream.position == "1"
            assert msgspec.to_builtins(await anext(stream)) == EVENTS[1]
            assert stream.position == f"{MS}-2"
            await stream.aclose()
            assert await collected(headgate.stream(RUN, last_event_id=stream.position)) == list(EVENTS[2:])

    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_leaving_the_loop_closes_the_connection(self, transport: Transport) -> None:
        server = FlakyServer(hang)
        async with serving(server) as url, client(url) as headgate:
            async for _ in headgate.stream(RUN, transport=transport):
                break
            await asyncio.wait_for(server.left.wait(), 10)

    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_so_does_closing_the_stream(self, transport: Transport) -> None:
        server = FlakyServer(hang)
        async with serving(server) as url, client(url) as headgate, headgate.stream(RUN, transport=transport) as stream:
            await anext(stream)
            await stream.aclose()
            await asyncio.wait_for(server.left.wait(), 10)
            assert [each async for each in stream] == []

    @pytest.mark.parametrize("transport", TRANSPORTS)
    async def test_so_does_a_consumer_that_is_cancelled(self, transport: Transport) -> None:
        server = FlakyServer(hang)
        async with serving(server) as url, client(url) as headgate:
            stream = headgate.stream(RUN, transport=transport)
            await anext(stream)
            await anext(stream)
            waiting = asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait([waiting], timeout=0.01)
            assert not done
            waiting.cancel()
            await asyncio.wait_for(server.left.wait(), 10)

    async def test_where_nobody_ever_answered_nobody_is_waited_for(self) -> None:
        async with client(f"http://127.0.0.1:{unused_port()}", backoff=Backoff()) as headgate:
            with pytest.raises(ServerGone, match="Nothing answers at http://127"):
                await collected(headgate.stream(RUN))

    async def test_what_is_no_event_stream_is_not_asked_again(self) -> None:
        server = FlakyServer()
        async with serving(server) as url, client(url + "/v1/models?") as headgate:
            with pytest.raises(BadAnswer):
                await collected(headgate.stream(RUN))
        assert len(server.requests) == 1

    async def test_gives_up_after_as_many_attempts_as_it_may_make(self) -> None:
        server = FlakyServer(cut_after(2), *[cut_after(0)] * 10)
        async with serving(server) as url, client(url, backoff=Backoff(first_s=0.0, attempts=3)) as headgate:
            with pytest.raises(ServerGone, match="was lost"):
                await collected(headgate.stream(RUN))
        assert len(server.requests) == 4


class TestTasks:
    async def test_a_submission_says_what_is_asked_and_nothing_else(self) -> None:
        server = FlakyServer()
        async with serving(server) as url, client(url) as headgate:
            task = await headgate.submit("Why?", model="m", context={"a": 1}, idempotency_key="k")
            assert (task.task_id, task.workflow_id, task.session_id) == (RUN, RUN, "session-1")
        assert server.bodies == [{"query": "Why?", "model": "m", "context": {"a": 1}}]
        assert submit("Why?", {"idempotency_key": "k"}).headers == {"Idempotency-Key": "k"}

    async def test_waiting_outlasts_lost_connections(self) -> None:
        server = FlakyServer(cut_after(1), refuse)
        async with serving(server) as url, client(url) as headgate:
            task, stream = await headgate.submit_and_stream("Why?")
            assert stream.workflow_id == RUN
            assert (await task.wait()).status == "COMPLETED"
            assert await task.result() == "It is a gate…"

    async def test_waiting_has_a_bound(self) -> None:
        async with serving(FlakyServer(hang)) as url, client(url) as headgate:
            with pytest.raises(WaitTimedOut, match=r"has not ended in 0\.05 s"):
                await headgate.wait(RUN, timeout_s=0.05)

    @pytest.mark.parametrize(
        ("ending", "error"),
        [
            (event(1, "WORKFLOW_FAILED", payload={"error": {"code": "upstream_cut", "message": "Gone."}}), TaskFailed),
            (event(1, "WORKFLOW_FAILED", payload={"error": {"code": "timeout", "message": "Late."}}), TaskTimedOut),
            (event(1, "WORKFLOW_FAILED"), TaskFailed),
            (event(1, "WORKFLOW_CANCELLED", payload={"reason": "no longer needed"}), TaskCancelled),
        ],
    )
    async def test_what_did_not_complete_has_no_result(self, ending: dict[str, Any], error: type[Exception]) -> None:
        async with serving(FlakyServer(events=[ending, event(2, "STREAM_END")])) as url, client(url) as headgate:
            with pytest.raises(error) as raised:
                await headgate.result(RUN)
            assert type(raised.value) is error

    async def test_a_request_is_sent_once(self) -> None:
        server = FlakyServer()
        async with serving(server) as url, client(url + "/v1/") as headgate:
            with pytest.raises(NotFound):
                await headgate.pause("../a task?")
        assert server.requests == [("POST", "/api/v1/tasks/..%2Fa%20task%3F/pause")]

    async def test_what_does_not_answer_as_headgate_does_is_told_so(self) -> None:
        async with serving(FlakyServer()) as url, client(url + "/v1/models?") as headgate:
            with pytest.raises(BadAnswer, match="does not answer as Headgate does"):
                await headgate.get(RUN)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (answers.Usage, rest_models.Usage),
        (answers.TaskSummary, rest_models.TaskSummary),
        (answers.Task, rest_models.Task),
        (answers.TaskList, rest_models.TaskList),
        (answers.EventPage, rest_models.EventPage),
        (answers.Event, rest_models.EventEnvelope),
        (answers.TimelineStep, rest_models.TimelineStep),
        (answers.Timeline, rest_models.Timeline),
        (answers.ControlState, rest_models.Control),
        (answers.Accepted, rest_models.Accepted),
        (answers.Approval, rest_models.PendingApproval),
        (answers.ApprovalList, rest_models.ApprovalList),
        (answers.Decided, rest_models.Decided),
        (answers.Session, rest_models.SessionSummary),
        (answers.SessionList, rest_models.SessionList),
        (answers.SessionTask, rest_models.SessionTask),
        (answers.SessionHistory, rest_models.SessionHistory),
        (answers.Turn, rest_models.Turn),
        (answers.UsageSum, usage_report.UsageSum),
        (answers.UsageGroup, usage_report.UsageGroup),
        (answers.UsageReport, usage_report.UsageAnswer),
        (answers.SessionTurns, rest_models.SessionTurns),
    ],
)
def test_the_client_knows_all_that_the_server_answers(ours: type[msgspec.Struct], theirs: Any) -> None:
    assert set(ours.__struct_fields__) == set(theirs.model_fields)
