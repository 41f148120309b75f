"""The engine in this process: who sees what, cancelling from anywhere, and backends that are away."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from orchestrator.embedded import Addresses
from orchestrator.errors import ModelNotFound, RunConflict, RunNotFound, Unavailable
from orchestrator.local import LocalEngine
from orchestrator.runs import Principal, RunState
from orchestrator.streamlog.log import BEGINNING, LogUnavailable, Position
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import ModelCard, UpstreamUnreachable
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import ACME, OTHER
from tests.orchestrator.processes import WAIT_S, Process, Shared, kinds, payload
from tests.orchestrator.streamlog.conftest import Proxy


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
async def process(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process() as process:
        yield process


async def read(engine: LocalEngine, principal: Principal, run_id: str, position: Position = BEGINNING) -> None:
    async with engine.subscribe(principal, run_id, position) as cursor:
        await cursor.next(WAIT_S)


METHODS: dict[str, Callable[[LocalEngine, Principal, str], Awaitable[object]]] = {
    "get": lambda engine, who, run_id: engine.get(who, run_id),
    "details": lambda engine, who, run_id: engine.details(who, run_id),
    "cancel": lambda engine, who, run_id: engine.cancel(who, run_id, "mine now"),
    "pause": lambda engine, who, run_id: engine.pause(who, run_id),
    "resume": lambda engine, who, run_id: engine.resume(who, run_id),
    "control_state": lambda engine, who, run_id: engine.control_state(who, run_id),
    "history": lambda engine, who, run_id: engine.history(who, run_id),
    "timeline": lambda engine, who, run_id: engine.timeline(who, run_id),
    "subscribe": lambda engine, who, run_id: read(engine, who, run_id),
    "subscribe at a position": lambda engine, who, run_id: read(engine, who, run_id, Position(1)),
}


@pytest.mark.parametrize("method", METHODS)
async def test_a_foreign_run_looks_like_a_missing_one(process: Process, method: str) -> None:
    """Running, held in the fan-out, ended, missing, or no id at all: one answer, to the last byte."""
    running, ended = await process.submit("hang", "direct"), await process.submit('say "one"', "direct")
    await process.events(ended)
    refusals = []
    for run_id in (running, ended, "task-" + "0" * 32, "no id", "task-" + "0" * 32 + "}:meta", ""):
        with pytest.raises(RunNotFound) as caught:
            await METHODS[method](process.engine, OTHER, run_id)
        refusals.append(caught.value.failure())
    assert refusals == [RunNotFound().failure()] * 6
    assert (await process.engine.get(ACME, running)).state is RunState.RUNNING


async def test_nor_does_an_archive_that_is_away_tell_them_apart(shared: Shared, process: Process) -> None:
    """A missing run was looked for in the archive, a foreign one was not: while it was away, 503 and 404 told which was which."""
    run_id = await process.submit("hang", "direct")

    class Away(Unavailable):
        """The archive is away."""

    async def away(run_id: str) -> None:
        raise Away

    shared.archive.run = away  # type: ignore[method-assign]
    for unseen in (run_id, "task-" + "0" * 32):
        with pytest.raises(Away):
            await process.engine.get(OTHER, unseen)
    assert (await process.engine.get(ACME, run_id)).id == run_id


async def test_the_one_who_submitted_reads_without_asking_the_log_for_the_tenant(shared: Shared, process: Process) -> None:
    run_id = await process.submit('say "one"', "direct")
    asked: list[str] = []

    async def note(operation: str, point: str) -> None:
        asked.append(operation)

    shared.store.checkpoint = note
    assert kinds(await process.events(run_id))[-1] == "STREAM_END"
    assert "run" not in asked
    assert "tail" not in asked


class TestCancel:
    async def test_twice_is_once(self, process: Process) -> None:
        run_id = await process.submit("hang", "direct")
        first, second = await asyncio.gather(
            process.engine.cancel(ACME, run_id, "first"), process.engine.cancel(ACME, run_id, "second")
        )
        assert first.id == second.id == run_id
        events = await process.events(run_id)
        assert kinds(events).count("WORKFLOW_CANCELLING") == 1
        assert [event.type for event in events].count("WORKFLOW_CANCELLING") == 1
        assert (await process.engine.cancel(ACME, run_id)).state is RunState.CANCELLED
        assert await process.events(run_id) == events

    @pytest.mark.parametrize(("text", "state"), [('say "one"', "COMPLETED"), ("status 500", "FAILED")])
    async def test_a_run_that_ended_otherwise_is_a_conflict(self, process: Process, text: str, state: str) -> None:
        run_id = await process.submit(text, "direct")
        events = await process.events(run_id)
        with pytest.raises(RunConflict, match=state) as caught:
            await process.engine.cancel(ACME, run_id)
        assert caught.value.code == "run_ended"
        assert await process.events(run_id) == events

    async def test_from_another_process(self, shared: Shared) -> None:
        async with shared.process() as here, shared.process() as there:
            run_id = await here.submit('say "one"; hang', "direct")
            await there.until(run_id, "LLM_PARTIAL")
            await there.engine.cancel(ACME, run_id, "enough")
            events = await there.events(run_id)
        assert shared.upstream.witness.calls[0].ending == "cancelled"
        ending = payload(events[-2])
        assert (events[-2].type, ending["reason"], ending["by"]) == ("WORKFLOW_CANCELLED", "enough", "key-1")

    async def test_a_message_from_elsewhere_that_nobody_understands(self, process: Process) -> None:
        run_id = await process.submit("hang", "direct")
        for op in ("", "cancel", "{", "[]", '{"op":"explode"}', '{"op":7}'):
            await process.log.publish_control(run_id, op)
        assert not (await process.engine.get(ACME, run_id)).state.ended


class TestAway:
    async def test_a_durable_run_without_temporal_is_refused_and_its_log_ended(self, shared: Shared, process: Process) -> None:
        with pytest.raises(Unavailable) as caught:
            await process.submit('say "one"')
        assert caught.value.retry_after_s == 2.0
        (run_id,) = shared.store.records
        events = await process.events(run_id)
        assert kinds(events) == ["WORKFLOW_STARTED", "WORKFLOW_FAILED", "STREAM_END"]
        assert payload(events[-2])["error"]["code"] == "backend_unavailable"
        assert await process.log.active() == []
        assert process.metrics.calls == ["started", RunState.FAILED]

    @pytest.mark.local
    async def test_temporal_that_goes_away_is_noticed_in_time(self, backends: Addresses) -> None:
        """The client repeats refused calls for ten seconds; a door has two."""
        proxy = Proxy(f"tcp://{backends.temporal}", random.Random(1))
        await proxy.start()
        shared = Shared(TemporalAddress(proxy.url.removeprefix("tcp://")))
        async with shared.process() as process:
            run_id = await process.submit('say "one"')
            await process.events(run_id)
            proxy.refusing = True
            proxy.cut()
            started = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await process.submit('say "two"')
            assert time.monotonic() - started < 2.0
            assert caught.value.retry_after_s == 2.0
            refused = next(other for other in shared.store.records if other != run_id)
            assert kinds(await process.events(refused))[-2:] == ["WORKFLOW_FAILED", "STREAM_END"]
            proxy.refusing = False
        await proxy.close()

    @pytest.mark.parametrize("point", ["sent", "answered"])
    async def test_a_refused_submission_is_not_executed_later(
        self, shared: Shared, process: Process, point: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The log took it, but its answer came too late: the caller was refused, and minutes later the janitor would have started
        a run that nobody waits for."""
        monkeypatch.setattr("orchestrator.submissions._WITHDRAW_S", (0.0, 0.0, 0.0))
        refused = [LogUnavailable(), LogUnavailable()]

        async def slow(operation: str, at: str) -> None:
            if operation in ("open", "append") and at == point and refused:
                raise refused.pop()

        shared.store.checkpoint = slow
        with pytest.raises(LogUnavailable):
            await process.submit('say "one"', "direct")
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*process.engine._submissions._tasks)
        assert not refused
        records = list(shared.store.records)
        assert len(records) == (0 if point == "sent" else 1)
        for run_id in records:
            assert kinds(await process.events(run_id))[-2:] == ["WORKFLOW_FAILED", "STREAM_END"]
        assert await process.log.active() == []
        assert not shared.upstream.witness.calls

    async def test_dependencies(self, shared: Shared, process: Process) -> None:
        found = await process.engine.dependencies()
        assert {name: (each.ok, each.required) for name, each in found.items()} == {
            "redis": (True, True),
            "temporal": (False, False),
            "postgres": (True, False),
        }


class TestModels:
    """Every model that can be named, in a stable order."""

    class Serving(ScriptedUpstream):
        def __init__(self, name: str, cards: Sequence[str]) -> None:
            super().__init__(name)
            self.cards: Sequence[str] | None = cards
            self.asked = 0

        async def models(self) -> Sequence[ModelCard]:
            self.asked += 1
            if self.cards is None:
                raise UpstreamUnreachable
            return [ModelCard(card, 7, "them") for card in self.cards]

    async def test_named_ones_first_and_each_once(self, shared: Shared) -> None:
        one, two = self.Serving("one", ["x", "y", "x"]), self.Serving("two", ["y", "named"])
        shared.upstreams |= {"one": one, "two": two}
        models = {
            "*": {"plan": {"agent": {"upstream": "two"}}},
            "p/*": {"plan": {"agent": {"upstream": "one"}}},
            "zeta": {"plan": {"agent": {"upstream": "one"}}, "owned_by": "us"},
            "named": {"plan": {"agent": {"upstream": "one"}}},
            "p/y": {"plan": {"agent": {"upstream": "one"}}},
            "p/q/*": {"plan": {"agent": {"upstream": "one"}}},
        }
        async with shared.process(models) as process:
            expected = [
                ("zeta", 0, "us"),
                ("named", 0, "headgate"),
                ("p/y", 0, "headgate"),
                ("p/q/x", 7, "them"),
                ("p/q/y", 7, "them"),
                ("p/x", 7, "them"),
                ("y", 7, "them"),
            ]
            for _ in range(2):
                cards = await process.engine.models()
                assert [(card.id, card.created, card.owned_by) for card in cards] == expected
            assert (one.asked, two.asked) == (2, 2)
            one.cards = None
            cards = await process.engine.models()
            assert [card.id for card in cards] == ["zeta", "named", "p/y", "y"]

    async def test_a_model_that_is_not_there_opens_nothing(self, shared: Shared, process: Process) -> None:
        with pytest.raises(ModelNotFound):
            await process.submit('say "one"', "unknown")
        assert not shared.store.records
        assert process.metrics.calls == []
