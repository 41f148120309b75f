"""The writer over the memory log: how it batches, waits, repeats itself, and ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import HeadgateError, LogRefused
from orchestrator.events import Event, EventType, encode
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import ACK_WINDOW, Batch, Fenced, LogClosed, LogUnavailable
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.streamlog.writer import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, EventWriter

AT = "2026-01-01T00:00:00.000Z"
RUN_ID = "task-" + "0" * 32
ENDING = [Event(EventType.WORKFLOW_COMPLETED, AT), Event(EventType.STREAM_END, AT)]


def delta(mark: object) -> Event:
    return Event(EventType.LLM_PARTIAL, AT, "agent", str(mark))


class Counted(NoMetrics):
    def __init__(self) -> None:
        self.appends: list[int] = []

    def append(self, events: int, seconds: float) -> None:
        assert seconds >= 0.0
        self.appends.append(events)


class Gate:
    """The log's checkpoint: appends pass one by one when let, and trouble can be had on the way there or back."""

    def __init__(self) -> None:
        self.open = True
        self.arrived = asyncio.Event()
        self.let = asyncio.Event()
        self.struck = asyncio.Event()
        self.trouble: dict[tuple[str, str], list[Exception]] = {}

    async def __call__(self, operation: str, point: str) -> None:
        if operation == "append" and point == "sent" and not self.open:
            self.arrived.set()
            await self.let.wait()
            self.let.clear()
        if waiting := self.trouble.get((operation, point)):
            self.struck.set()
            raise waiting.pop(0)


class Desk:
    """A run's log, and a writer on it."""

    def __init__(self) -> None:
        self.store = MemoryStore(SystemClock().time)
        self.gate = Gate()
        self.log = MemoryLog(self.store)
        self.metrics = Counted()
        self.refusals: list[HeadgateError] = []
        self.batches: list[Batch] = []

    async def open(self) -> None:
        self.log.listener = self.batches.append
        await self.log.open(
            Run(RUN_ID, "t", "m", "agent", 1), RunRequest("m", "m", {}, {}), [encode(Event("WORKFLOW_STARTED", AT))]
        )
        self.batches.clear()
        self.store.checkpoint = self.gate

    def writer(self, attempt: int = 1, **options: Any) -> EventWriter:
        return EventWriter(
            self.log,
            RUN_ID,
            "agent",
            attempt,
            lease_ms=5000,
            metrics=self.metrics,
            clock=SystemClock(),
            on_refused=self.refusals.append,
            **options,
        )

    @property
    def batched(self) -> list[list[str]]:
        """What arrived together."""
        return [[entry.event.message or entry.event.type for entry in batch.entries] for batch in self.batches]

    async def messages(self) -> list[str]:
        return [entry.event.message or entry.event.type for entry in await self.log.read(RUN_ID, 1, 100_000)]


@pytest.fixture
async def desk() -> Desk:
    desk = Desk()
    await desk.open()
    return desk


async def test_while_one_append_is_in_flight_the_rest_gathers(desk: Desk) -> None:
    desk.gate.open = False
    writer = desk.writer()
    writer.emit(delta(0))
    await desk.gate.arrived.wait()
    for number in range(1, 5):
        writer.emit(delta(number))
    desk.gate.open = True
    desk.gate.let.set()
    await writer.flush()
    assert desk.batched == [["0"], ["1", "2", "3", "4"]]
    assert desk.metrics.appends == [1, 4]


async def test_nothing_emitted_is_nothing_appended(desk: Desk) -> None:
    writer = desk.writer()
    writer.emit()
    await writer.flush()
    assert desk.batched == []


@pytest.mark.parametrize(("size", "batches"), [(1, [1]), (MAX_BATCH_EVENTS, [512]), (MAX_BATCH_EVENTS + 1, [512, 1])])
async def test_an_append_has_a_bound_on_its_events(desk: Desk, size: int, batches: list[int]) -> None:
    writer = desk.writer()
    writer.emit(*map(delta, range(size)))
    await writer.flush()
    assert desk.metrics.appends == batches


async def test_an_append_has_a_bound_on_its_bytes_and_one_large_event_still_passes(desk: Desk) -> None:
    writer = desk.writer(max_bytes=1 << 30)
    half = "x" * (MAX_BATCH_BYTES // 2)
    writer.emit(delta(half), delta(half), delta("x" * MAX_BATCH_BYTES), delta("small"))
    await writer.flush()
    assert desk.metrics.appends == [1, 1, 1, 1]
    assert [len(message) for message in await desk.messages()] == [len(half), len(half), MAX_BATCH_BYTES, 5]


async def test_room_waits_at_the_bound_and_returns_below_it(desk: Desk) -> None:
    desk.gate.open = False
    writer = desk.writer(max_bytes=100)
    assert not writer.full
    await writer.room()
    writer.emit(delta("x" * 100))
    assert writer.full
    room = asyncio.create_task(writer.room())
    await desk.gate.arrived.wait()
    assert not room.done(), "what is in flight counts too"
    desk.gate.let.set()
    await room
    assert not writer.full


@pytest.mark.parametrize("point", ["sent", "answered"])
async def test_what_was_lost_on_the_way_is_sent_again_and_takes_effect_once(desk: Desk, point: str) -> None:
    desk.gate.trouble["append", point] = [LogUnavailable(), LogUnavailable()]
    writer = desk.writer()
    writer.emit(delta(0))
    await writer.flush()
    writer.emit(delta(1))
    await writer.flush()
    assert await desk.messages() == ["0", "1"]
    assert desk.refusals == []
    assert writer.refused is None


async def test_an_append_that_was_applied_so_long_ago_that_it_is_forgotten_is_done(desk: Desk) -> None:
    """Its reply was lost, and before it was asked again, the log took more of this writer than it remembers."""
    desk.gate.trouble["append", "answered"] = [LogUnavailable()]
    writer = desk.writer()
    writer.emit(delta("first"))
    await desk.gate.struck.wait()
    for number in range(2, ACK_WINDOW + 2):
        await desk.log.append(RUN_ID, "agent", 1, number, [encode(delta(number))])
    await writer.flush()
    assert writer.refused is None
    assert (await desk.messages()).count("first") == 1


async def test_a_refusal_is_told_once_and_every_later_call_raises_it(desk: Desk) -> None:
    await desk.log.append(RUN_ID, "agent", 2, 1, [encode(delta("later attempt"))])
    writer = desk.writer(attempt=1, max_bytes=1)
    writer.emit(delta(0), delta(1))
    with pytest.raises(Fenced):
        await writer.room()
    for call in (writer.flush, writer.room, lambda: writer.end(ENDING, RunState.COMPLETED)):
        with pytest.raises(Fenced):
            await call()
    with pytest.raises(Fenced):
        writer.emit(delta(2))
    assert [type(error) for error in desk.refusals] == [Fenced]
    assert await desk.messages() == ["later attempt"]


async def test_an_unforeseen_failure_ends_the_writer_and_wakes_who_waits(desk: Desk) -> None:
    """Redis answered something that is no refusal. The flush died of it silently; whoever waited for room waited for ever, and
    the next append was refused as one that skips, which blamed a crash of the log."""
    desk.gate.trouble["append", "sent"] = [RuntimeError("WRONGTYPE")]
    writer = desk.writer(max_bytes=1)
    writer.emit(delta(0))
    with pytest.raises(LogRefused, match="not known"):
        await asyncio.wait_for(writer.room(), 5)
    with pytest.raises(LogRefused):
        writer.emit(delta(1))
    assert len(desk.refusals) == 1


async def test_the_end_closes_the_log_together_with_what_was_queued(desk: Desk) -> None:
    writer = desk.writer()
    writer.emit(delta(0), state=RunState.RUNNING)
    await writer.end(ENDING, RunState.COMPLETED)
    assert desk.batched == [["0", "WORKFLOW_COMPLETED", "STREAM_END"]]
    run = await desk.log.run(RUN_ID)
    assert run is not None
    assert run.state is RunState.COMPLETED
    with pytest.raises(LogClosed):
        await desk.log.append(RUN_ID, "other", 1, 1, [])


async def test_an_end_over_the_bounds_closes_only_with_its_last_append(desk: Desk) -> None:
    closed: list[bool] = []

    def heard(batch: Batch) -> None:
        record = desk.store.record(RUN_ID)
        assert record is not None
        closed.append(record.closed)

    desk.log.listener = heard
    writer = desk.writer()
    writer.emit(*map(delta, range(2 * MAX_BATCH_EVENTS)), state=RunState.RUNNING)
    await writer.end(ENDING, RunState.COMPLETED)
    assert closed == [False, False, True]
    assert (await desk.messages())[-2:] == ["WORKFLOW_COMPLETED", "STREAM_END"]


async def test_an_end_whose_reply_is_lost_is_there_once(desk: Desk) -> None:
    desk.gate.trouble["append", "answered"] = [LogUnavailable()]
    writer = desk.writer()
    await writer.end(ENDING, RunState.COMPLETED)
    assert await desk.messages() == ["WORKFLOW_COMPLETED", "STREAM_END"]
    assert desk.refusals == []


async def test_a_writer_that_is_abandoned_drops_what_is_queued_and_tells_nobody(desk: Desk) -> None:
    desk.gate.open = False
    writer = desk.writer()
    writer.emit(delta(0))
    await desk.gate.arrived.wait()
    writer.emit(delta(1))
    await writer.abandon()
    assert await desk.messages() == []
    assert desk.refusals == []
    with pytest.raises(LogRefused):
        writer.emit(delta(2))


async def test_when_the_log_last_took_an_append_is_known(desk: Desk) -> None:
    writer = desk.writer()
    assert writer.appended_at == 0.0
    before = SystemClock().time()
    writer.emit(delta(0))
    await writer.flush()
    assert before <= writer.appended_at <= SystemClock().time()
    assert await desk.log.lease_ms(RUN_ID) > 4000
