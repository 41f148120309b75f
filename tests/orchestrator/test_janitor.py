"""The janitor: every run that nobody executes gets its true ending, and a start that was lost is made up for."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from orchestrator.clock import SystemClock
from orchestrator.embedded import Addresses
from orchestrator.ender import Ender
from orchestrator.endings import WORKER_LOST
from orchestrator.events import Event, EventType, encode
from orchestrator.janitor import Janitor
from orchestrator.limits.keeper import Keeper
from orchestrator.limits.limits import Unlimited
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Run, RunRequest, RunState, new_run_id
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.log import LogUnavailable
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.workflows.worker import Temporal, TemporalAddress, TemporalUnavailable
from tests.orchestrator.engines import NOWHERE, TOKENIZER
from tests.orchestrator.processes import WAIT_S, Process, Shared, kinds, payload

AT = "2026-01-01T00:00:00.000Z"
STARTED = encode(Event(EventType.WORKFLOW_STARTED, AT))


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


class House:
    """A log with runs in all states of neglect, and a janitor who cannot reach Temporal."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock.time)
        self.log = MemoryLog(self.store)
        self.ender = Ender(self.log, NoMetrics(), self.clock, Spending(self.log, Unlimited(), TOKENIZER))

    def janitor(self, owner: str = "one", temporal: Temporal | None = None) -> Janitor:
        return Janitor(
            self.log,
            self.ender,
            temporal or nowhere(),
            Keeper(self.log.run, Unlimited()),
            self.clock,
            owner=owner,
            round_s=2.0,
            grace_s=5.0,
        )

    async def run(self, *, durable: bool) -> Run:
        run = Run(
            new_run_id(int(self.clock.now * 1000), secrets.token_bytes),
            "t",
            "m",
            "agent",
            int(self.clock.now * 1000),
            durable=durable,
        )
        await self.log.open(run, RunRequest("m", "m", {"agent": {"upstream": "demo"}}, {}), [STARTED])
        return run

    async def said(self, run: Run) -> list[str]:
        return [entry.event.type for entry in await self.log.read(run.id, 0, 100)]

    async def later(self, janitor: Janitor, seconds: float) -> None:
        self.clock.now += seconds
        await janitor.round()


def nowhere() -> Temporal:
    return Temporal(NOWHERE, None, task_queue="q", heartbeat_s=5.0, max_agents=1, drain_s=0.0)  # type: ignore[arg-type]


@pytest.fixture
def house() -> House:
    return House()


async def test_an_orphan_that_is_not_durable_gets_its_ending_after_the_grace_period(house: House) -> None:
    run, janitor = await house.run(durable=False), house.janitor()
    await janitor.round()
    await house.later(janitor, 4.9)
    assert await house.said(run) == ["WORKFLOW_STARTED"]
    await house.later(janitor, 0.2)
    assert await house.said(run) == ["WORKFLOW_STARTED", "WORKFLOW_FAILED", "STREAM_END"]
    ending = (await house.log.read(run.id, 1, 1))[0].event
    assert payload(ending)["error"]["code"] == WORKER_LOST.code
    assert await house.log.active() == []
    assert await house.log.unarchived(10) == [run.id]


async def test_a_live_lease_keeps_the_janitor_away_and_starts_the_grace_period_anew(house: House) -> None:
    run, janitor = await house.run(durable=False), house.janitor()
    await janitor.round()
    for _ in range(4):
        await house.log.claim(run.id, "agent", 1, 5000)
        await house.later(janitor, 4.0)
    await house.later(janitor, 2.0)
    await house.later(janitor, 4.0)
    assert await house.said(run) == ["WORKFLOW_STARTED"]
    await house.later(janitor, 1.1)
    assert (await house.said(run))[-1] == "STREAM_END"


async def test_settled_runs_leave_the_active_ones(house: House) -> None:
    """A process died between closing a log and taking the run off the list; another run's log has expired."""
    ended, gone = await house.run(durable=True), await house.run(durable=True)
    await house.ender.fail(ended.id, WORKER_LOST)
    house.store.active |= {ended.id: None, gone.id: None}
    del house.store.records[gone.id]
    await house.janitor().round()
    assert await house.log.active() == []


async def test_temporal_away_ends_nothing_that_is_durable_and_holds_nothing_else_up(house: House) -> None:
    durable, direct = await house.run(durable=True), await house.run(durable=False)
    janitor = house.janitor()
    await janitor.round()
    with pytest.raises(TemporalUnavailable):
        await house.later(janitor, 6.0)
    assert await house.said(durable) == ["WORKFLOW_STARTED"]
    assert (await house.said(direct))[-1] == "STREAM_END"
    assert await house.log.active() == [durable.id]


async def test_one_janitor_at_a_time_and_another_when_it_is_gone(house: House) -> None:
    run = await house.run(durable=False)
    one, two = house.janitor("one"), house.janitor("two")
    assert await one.round()
    assert not await two.round()
    house.clock.now += 6.1
    assert await two.round()
    assert not await one.round()
    await house.later(two, 5.1)
    assert (await house.said(run))[-1] == "STREAM_END"


async def test_a_run_that_cannot_be_looked_at_does_not_hold_up_the_others(house: House) -> None:
    await house.run(durable=False)
    second = await house.run(durable=False)
    janitor = house.janitor()
    await janitor.round()
    trouble = [ValueError("not what anybody wrote")]

    async def broken(operation: str, point: str) -> None:
        if operation == "run" and trouble:
            raise trouble.pop()

    house.store.checkpoint = broken
    await house.later(janitor, 6.0)
    house.store.checkpoint = None
    assert (await house.said(second))[-1] == "STREAM_END"


async def test_rounds_go_on_after_an_outage(house: House) -> None:
    answered = asyncio.Event()
    outages = [LogUnavailable(), ValueError("unforeseen"), None]

    async def away(operation: str, point: str) -> None:
        if operation == "lease":
            if error := outages.pop(0) if outages else None:
                raise error
            answered.set()

    house.store.checkpoint = away
    janitor = Janitor(
        house.log, house.ender, nowhere(), Keeper(house.log.run, Unlimited()), SystemClock(), owner="one", round_s=0.001
    )
    async with asyncio.timeout(WAIT_S), janitor.working():
        await answered.wait()


async def test_ten_thousand_live_runs_cost_one_call_each(house: House) -> None:
    for _ in range(10_000):
        run = await house.run(durable=True)
        await house.log.claim(run.id, "agent", 1, 60_000)
    calls: dict[str, int] = {}

    async def count(operation: str, point: str) -> None:
        calls[operation] = calls.get(operation, 0) + 1

    house.store.checkpoint = count
    started = time.process_time()
    await house.janitor().round()
    assert calls == {"lease": 1, "active": 1, "lease_ms": 10_000}
    assert time.process_time() - started < 2.0


@pytest.mark.local
class TestDurable:
    """On real Temporal: what became of the workflow decides how the run ended."""

    @pytest.fixture
    async def process(self, backends: Addresses) -> AsyncIterator[Process]:
        async with Shared(TemporalAddress(backends.temporal)).process() as process:
            yield process

    def janitor(self, process: Process) -> Janitor:
        parts = process.engine
        return Janitor(
            process.log,
            parts._submissions._ender,
            parts._temporal,
            Keeper(process.log.run, Unlimited()),
            SystemClock(),
            owner="process-1",
            grace_s=0.0,
        )

    async def lost(self, process: Process, *, started: bool) -> str:
        """A run that nobody executes: its start was lost, or its workflow waits on a queue that nobody serves."""
        now_ms = int(time.time() * 1000)
        run = Run(new_run_id(now_ms, secrets.token_bytes), "acme", "durable", "agent", now_ms)
        body = {"messages": [{"role": "user", "content": '/script\nsay "one"'}]}
        request = RunRequest("durable", "durable", {"agent": {"upstream": "demo"}}, body)
        await process.log.open(run, request, [STARTED])
        if started:
            client = await self.client(process)
            await client.start_workflow("HeadgateRun", id=run.id, task_queue=f"{run.id}-unserved")
        return run.id

    async def client(self, process: Process) -> Client:
        return await Client.connect(process.engine._temporal._address.target)

    async def terminate(self, process: Process, run_id: str) -> None:
        await (await self.client(process)).get_workflow_handle(run_id).terminate()

    async def test_a_lost_start_is_made_up_for(self, process: Process) -> None:
        run_id = await self.lost(process, started=False)
        await self.janitor(process).round()
        events = await process.events(run_id)
        assert kinds(events)[-2:] == ["WORKFLOW_COMPLETED", "STREAM_END"]
        assert payload(events[-2])["result"] == "one"

    async def test_a_workflow_that_waits_for_a_worker_is_left_alone(self, process: Process) -> None:
        run_id = await self.lost(process, started=True)
        await self.janitor(process).round()
        assert [entry.event.type for entry in await process.log.read(run_id, 0, 10)] == ["WORKFLOW_STARTED"]
        await self.terminate(process, run_id)

    async def test_a_terminated_workflow_left_its_run_without_a_worker(self, process: Process) -> None:
        run_id = await self.lost(process, started=True)
        await self.terminate(process, run_id)
        await self.janitor(process).round()
        assert payload((await process.events(run_id))[-2])["error"]["code"] == WORKER_LOST.code

    async def test_a_workflow_that_timed_out(self, process: Process) -> None:
        run_id = await self.lost(process, started=False)
        client = await self.client(process)
        handle = await client.start_workflow(
            "HeadgateRun", id=run_id, task_queue=f"{run_id}-unserved", execution_timeout=timedelta(milliseconds=100)
        )
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(handle.result(), return_exceptions=True)
        await self.janitor(process).round()
        assert payload((await process.events(run_id))[-2])["error"]["code"] == "timeout"
        run = await process.log.run(run_id)
        assert run is not None
        assert run.state is RunState.TIMEOUT

    async def test_a_cancelled_workflow_whose_run_nobody_ended(self, process: Process) -> None:
        """The words in which it was asked for are in the log."""
        run_id = await self.lost(process, started=False)
        asked = Event(EventType.WORKFLOW_CANCELLING, AT, payload={"reason": "enough", "by": "key-1"})
        await process.log.append(run_id, "said:cancelling", 1, 1, [encode(asked)])
        client = await self.client(process)
        async with Worker(client, task_queue=run_id, workflows=[Obedient], workflow_runner=UnsandboxedWorkflowRunner()):
            handle = await client.start_workflow("Obedient", id=run_id, task_queue=run_id)
            await handle.cancel()
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(handle.result(), return_exceptions=True)
        await self.janitor(process).round()
        ending = (await process.events(run_id))[-2]
        assert (ending.type, ending.payload) == ("WORKFLOW_CANCELLED", {"reason": "enough", "by": "key-1"})


@workflow.defn(name="Obedient")
class Obedient:
    """A workflow that is cancelled without a word to anybody."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)
