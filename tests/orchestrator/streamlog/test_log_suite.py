"""What `streamlog.log` promises, on both implementations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from orchestrator.events import Entry, Event, Gap, encode
from orchestrator.runs import MOVES, Run, RunRequest, RunState
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import (
    ACK_WINDOW,
    AppendForgotten,
    AppendSkipped,
    Batch,
    Claim,
    Fenced,
    Log,
    LogClosed,
    LogExists,
    LogMissing,
    LogRefused,
    Position,
    Tail,
)
from tests.orchestrator.streamlog.simulation import NoHistory

Body = Callable[[object], bytes]


async def outcome(call: Awaitable[Any]) -> Any:
    """What a call answered, without the time: positions, `repeated`, or the refusal's class."""
    try:
        answer = await call
    except LogRefused as refusal:
        return type(refusal)
    return answer.first_seq, answer.count, answer.repeated


async def resumed(fanout: Fanout, run_id: str, position: Position, count: int) -> list[Entry | Gap]:
    """What a reader who comes with this position gets, until it has this many."""
    got: list[Entry | Gap] = []
    async with fanout.subscribe(run_id, position) as subscription:
        while len(got) < count:
            got += await subscription.next(5.0)
    return got


async def everything(log: Log, run_id: str) -> list[Entry]:
    return await log.read(run_id, 0, 100_000)


class TestKept:
    async def test_all_but_the_deltas(self, world: Any, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        delta, other = (encode(Event(kind, "2026-01-01T00:00:00.000Z")) for kind in ("LLM_PARTIAL", "PROGRESS"))
        await here.log.open(run, ask, [other])
        await here.log.append(run.id, "w", 1, 1, [delta, other, delta, delta])
        await here.log.append(run.id, "w", 1, 2, [delta, other, other], ends=True)
        entries = await everything(here.log, run.id)
        kept = [entries[place] for place in (0, 2, 6, 7)]
        assert await here.log.kept(run.id) == kept
        assert await here.log.kept("task-" + "0" * 32) == []

    async def test_many_of_them_with_deltas_in_between(self, world: Any, ask: RunRequest, body: Body, kept_body: Body) -> None:
        """More than one read command gives, some alone, some among deltas, and deltas alone."""
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body("open")])
        for n in range(400):
            await here.log.append(
                run.id, "w", 1, n + 1, [kept_body(n)] * (n % 3 % 2) + [body(n)] * (n % 5) + [kept_body(n)] * (n % 2)
            )
        entries = await everything(here.log, run.id)
        assert await here.log.kept(run.id) == [entry for entry in entries if not entry.is_delta]
        assert len(await here.log.kept(run.id)) == 333

    async def test_what_was_trimmed_is_left_out(self, world: Any, ask: RunRequest, body: Body, kept_body: Body) -> None:
        here = await world.process(max_events=100)
        run = world.run()
        await here.log.open(run, ask, [kept_body(0)])
        for n in range(1, 401):
            await here.log.append(run.id, "w", 1, n, [kept_body(n), body(n)])
        entries = await everything(here.log, run.id)
        assert await here.log.kept(run.id) == [entry for entry in entries if not entry.is_delta]


class TestOpen:
    async def test_a_log_begins_with_its_first_events(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        opened = await here.log.open(run, ask, [body(1), body(2)])
        assert (opened.first_seq, opened.count, opened.repeated) == (1, 2, False)
        entries = [Entry(1, opened.ms, body(1)), Entry(2, opened.ms, body(2))]
        assert await everything(here.log, run.id) == entries
        assert await here.log.tail(run.id) == Tail(2, opened.ms, 1, False)
        assert await here.log.run(run.id) == run
        assert await here.log.request(run.id) == ask
        assert here.batches == [Batch(run.id, 0, 0, entries)]

    async def test_twice_is_refused_and_changes_nothing(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        with pytest.raises(LogExists):
            await here.log.open(msgspec.structs.replace(run, model="other"), ask, [body(2)])
        assert [entry.body for entry in await everything(here.log, run.id)] == [body(1)]
        assert await here.log.run(run.id) == run

    async def test_all_that_is_known_of_a_run_comes_back(self, world: Any, ask: RunRequest) -> None:
        here = await world.process()
        run = msgspec.structs.replace(world.run(), session_id="s", metadata={"k": ["v", None]}, deadline_ms=5, durable=False)
        await here.log.open(run, ask, [])
        assert await here.log.run(run.id) == run
        assert (await here.log.tail(run.id)).first_seq == 1

    async def test_a_run_that_is_over_is_opened_and_closed_at_once(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = msgspec.structs.replace(world.run(), state=RunState.COMPLETED)
        end = encode(Event("STREAM_END", "2026-01-01T00:00:00.000Z"))
        appended = await here.log.open(run, ask, [body(1), body("x" * 20_000), body(3), end])
        assert (appended.first_seq, appended.count) == (1, 4)
        assert await here.log.tail(run.id) == Tail(4, appended.ms, 1, closed=True)
        assert [entry.body for entry in await everything(here.log, run.id)] == [body(1), body("x" * 20_000), body(3), end]
        assert await here.log.run(run.id) == msgspec.structs.replace(run, started_ms=appended.ms, ended_ms=appended.ms)
        assert [entry.seq for entry in here.heard] == [1, 2, 3, 4]
        assert (await here.log.active(), await here.log.unarchived(10)) == ([], [run.id])
        assert await outcome(here.log.append(run.id, "w", 1, 1, [body(5)])) is LogClosed
        with pytest.raises(LogExists):
            await here.log.open(run, ask, [body(1)])

    async def test_a_missing_log(self, world: Any, body: Body) -> None:
        here = await world.process()
        run_id = world.run().id
        assert await here.log.tail(run_id) is None
        assert await here.log.run(run_id) is None
        assert await here.log.request(run_id) is None
        assert await here.log.find(run_id, 1) is None
        assert await here.log.read(run_id, 0, 10) == []
        assert await here.log.read(run_id, 7, 10) == []
        assert await here.log.lease_ms(run_id) == 0
        assert await outcome(here.log.append(run_id, "w", 1, 1, [body(1)])) is LogMissing
        with pytest.raises(LogMissing):
            await here.log.claim(run_id, "w", 1, 1000)


MOVES_OF_A_WRITER = {
    "the first append": ([], ("w", 1, 1), (2, 1, False)),
    "the next append": ([("w", 1, 1)], ("w", 1, 2), (3, 1, False)),
    "a repeated append": ([("w", 1, 1), ("w", 1, 2)], ("w", 1, 1), (2, 1, True)),
    "the last append repeated": ([("w", 1, 1), ("w", 1, 2)], ("w", 1, 2), (3, 1, True)),
    "a skipped append": ([("w", 1, 1)], ("w", 1, 3), AppendSkipped),
    "a first append that is not the first": ([], ("w", 1, 2), AppendSkipped),
    "a higher attempt begins anew": ([("w", 1, 1), ("w", 1, 2)], ("w", 2, 1), (4, 1, False)),
    "a higher attempt skips": ([("w", 1, 1)], ("w", 2, 2), AppendSkipped),
    "a lower attempt": ([("w", 2, 1)], ("w", 1, 1), Fenced),
    "a lower attempt goes on": ([("w", 1, 1), ("w", 2, 1)], ("w", 1, 2), Fenced),
    "a lower attempt repeats": ([("w", 1, 1), ("w", 2, 1)], ("w", 1, 1), Fenced),
    "another writer's numbers are its own": ([("w", 1, 1), ("w", 1, 2)], ("v", 1, 1), (4, 1, False)),
    "another writer's attempts are its own": ([("w", 9, 1)], ("v", 1, 1), (3, 1, False)),
    "without a sequence": ([("w", 1, 1)], ("w", 1, 0), (3, 1, False)),
    "without a sequence, again": ([("w", 1, 0)], ("w", 1, 0), (3, 1, False)),
    "without a sequence, the count goes on": ([("w", 1, 1), ("w", 1, 0)], ("w", 1, 2), (4, 1, False)),
    "without a sequence, a lower attempt": ([("w", 2, 0)], ("w", 1, 0), Fenced),
    "without a sequence, a higher attempt fences": ([("w", 1, 1), ("w", 2, 0)], ("w", 1, 2), Fenced),
    "the engine's sequence does not count the opening": ([], ("engine", 1, 1), (2, 1, False)),
    "the oldest remembered append": (
        [("w", 1, n) for n in range(1, ACK_WINDOW + 3)],
        ("w", 1, 3),
        (4, 1, True),
    ),
    "a forgotten append": (
        [("w", 1, n) for n in range(1, ACK_WINDOW + 3)],
        ("w", 1, 2),
        AppendForgotten,
    ),
}


class TestAppend:
    @pytest.mark.parametrize("name", MOVES_OF_A_WRITER)
    async def test_every_move_of_a_writer(self, name: str, world: Any, body: Body, ask: RunRequest) -> None:
        """P2: what each append is answered with, and that only an applied one changes the log."""
        before, (writer, attempt, producer_seq), expected = MOVES_OF_A_WRITER[name]
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body("open")])
        for step in before:
            await here.log.append(run.id, *step, [body(step)])
        held = await everything(here.log, run.id)
        assert await outcome(here.log.append(run.id, writer, attempt, producer_seq, [body("new")])) == expected
        applied = isinstance(expected, tuple) and not expected[2]
        bodies = [entry.body for entry in held] + ([body("new")] if applied else [])
        entries = await everything(here.log, run.id)
        assert [(entry.seq, entry.body) for entry in entries] == list(enumerate(bodies, 1))
        assert entries[: len(held)] == held

    async def test_a_batch_is_numbered_densely_and_stands_at_one_time(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        await world.pass_ms(5)
        appended = await here.log.append(run.id, "w", 1, 1, [body(n) for n in range(2, 102)])
        assert (appended.first_seq, appended.count) == (2, 100)
        entries = await everything(here.log, run.id)
        assert [entry.seq for entry in entries] == list(range(1, 102))
        assert {entry.ms for entry in entries[1:]} == {appended.ms}
        assert entries[0].ms < appended.ms

    async def test_a_repetition_is_answered_with_its_first_positions(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(0)])
        first = await here.log.append(run.id, "w", 1, 1, [body(1), body(2)])
        await world.pass_ms(5)
        await here.log.append(run.id, "v", 1, 1, [body(3)])
        assert await here.log.append(run.id, "w", 1, 1, [body(1), body(2)]) == msgspec.structs.replace(first, repeated=True)

    async def test_a_repetition_is_heard_by_the_local_listener(self, world: Any, body: Body, ask: RunRequest) -> None:
        """A reply is lost, and with it the listener's batch: the repetition is the first this process hears of it."""
        lost, here = await world.process(), await world.process()
        run = world.run()
        await lost.log.open(run, ask, [body(0)])
        await lost.log.append(run.id, "w", 1, 1, [body(1)])
        await here.log.append(run.id, "w", 1, 1, [body(1)])
        assert here.batches == lost.batches[1:]

    async def test_events_given_along_need_no_decoding(
        self, world: Any, event: Callable[[object], Event], body: Body, ask: RunRequest
    ) -> None:
        here = await world.process()
        run = world.run()
        first, second = event(1), event(2)
        await here.log.open(run, ask, [body(1)], events=[first])
        await here.log.append(run.id, "w", 1, 1, [body(2)], events=[second])
        assert [entry.event is given for entry, given in zip(here.heard, (first, second), strict=True)] == [True, True]

    async def test_an_append_without_events_moves_the_run(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        assert await outcome(here.log.append(run.id, "w", 1, 1, [], state=RunState.RUNNING)) == (2, 0, False)
        assert (await here.log.run(run.id)).state is RunState.RUNNING
        assert [batch.entries[0].seq for batch in here.batches] == [1]

    async def test_a_log_is_trimmed_at_its_cap_and_says_where_it_begins(self, world: Any, body: Body, ask: RunRequest) -> None:
        """P6. Trimming removes whole nodes of a stream at a time, so a little more than the cap may stay."""
        here = await world.process(max_events=300)
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        for n in range(1, 11):
            await here.log.append(run.id, "w", 1, n, [body((n, m)) for m in range(100)])
        tail = await here.log.tail(run.id)
        assert tail.seq == 1001
        assert 300 <= tail.seq - tail.first_seq + 1 <= 450
        assert [entry.seq for entry in await everything(here.log, run.id)] == list(range(tail.first_seq, 1002))
        assert await here.log.find(run.id, tail.first_seq - 1) is None
        assert (await here.log.find(run.id, tail.first_seq)).seq == tail.first_seq
        assert (await here.log.read(run.id, 5, 1))[0].seq == tail.first_seq


class TestStates:
    @pytest.mark.parametrize("was", [state for state in RunState if not state.ended])
    @pytest.mark.parametrize("state", RunState)
    async def test_a_run_moves_only_where_it_may(
        self, was: RunState, state: RunState, world: Any, body: Body, ask: RunRequest
    ) -> None:
        here = await world.process()
        run = msgspec.structs.replace(world.run(), state=was)
        await here.log.open(run, ask, [body(1)])
        appended = await here.log.append(run.id, "w", 1, 1, [body(2)], state=state, ends=state.ended)
        expected = state if state in MOVES[was] else was
        found = await here.log.run(run.id)
        assert found == msgspec.structs.replace(
            run,
            state=expected,
            started_ms=appended.ms if expected is state is RunState.RUNNING else None,
            ended_ms=appended.ms if state.ended else None,
        )

    async def test_the_start_is_the_first_start(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        started = await here.log.append(run.id, "w", 1, 1, [body(2)], state=RunState.RUNNING)
        await world.pass_ms(5)
        for n, state in enumerate((RunState.PAUSED, RunState.RUNNING), 2):
            await here.log.append(run.id, "w", 1, n, [body(n)], state=state)
        assert (await here.log.run(run.id)).started_ms == started.ms

    @pytest.mark.parametrize("state", [state for state in RunState if state.ended])
    async def test_who_starts_and_ends_in_one_append_has_started(
        self, state: RunState, world: Any, body: Body, ask: RunRequest
    ) -> None:
        """Answers that came in one piece had no `started_at`, whatever was said in them."""
        here = await world.process()
        for begun in (True, False):
            run = world.run()
            await here.log.open(run, ask, [body(1)])
            bodies = [encode(Event("AGENT_STARTED", "2026-01-01T00:00:00.000Z")), body(2)] if begun else [body(2)]
            appended = await here.log.append(run.id, "w", 1, 1, bodies, state=state, ends=True)
            assert (await here.log.run(run.id)).started_ms == (appended.ms if begun else None)

    async def test_a_state_that_ends_needs_an_ending(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        await here.log.append(run.id, "w", 1, 1, [body(2)], state=RunState.FAILED)
        assert (await here.log.run(run.id)).state is RunState.QUEUED

    async def test_an_ended_log_refuses_everything_but_a_known_append(self, world: Any, body: Body, ask: RunRequest) -> None:
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1)])
        await here.log.append(run.id, "w", 2, 1, [body(2)], lease_ms=60_000)
        ended = await here.log.append(run.id, "w", 2, 2, [body(3), body(4)], state=RunState.COMPLETED, ends=True)
        held = await everything(here.log, run.id)
        for writer, attempt, producer_seq in [("w", 2, 3), ("w", 3, 1), ("w", 1, 1), ("v", 1, 1), ("engine", 1, 0), ("w", 2, 9)]:
            refused = here.log.append(run.id, writer, attempt, producer_seq, [body(5)], state=RunState.FAILED, ends=True)
            assert await outcome(refused) is LogClosed
        for attempt, lease_ms in [(1, 1000), (2, 1000), (3, 1000), (2, 0)]:
            with pytest.raises(LogClosed):
                await here.log.claim(run.id, "w", attempt, lease_ms)
        assert await here.log.append(run.id, "w", 2, 2, [body(3), body(4)], ends=True) == msgspec.structs.replace(
            ended, repeated=True
        )
        assert await everything(here.log, run.id) == held
        assert (await here.log.run(run.id)).state is RunState.COMPLETED
        assert await here.log.tail(run.id) == Tail(4, ended.ms, 1, True)
        assert await here.log.lease_ms(run.id) == 0


class TestClaims:
    @pytest.fixture
    async def here(self, world: Any) -> Any:
        return await world.process()

    @pytest.fixture
    async def run(self, here: Any, world: Any, body: Body, ask: RunRequest) -> Run:
        run: Run = world.run()
        await here.log.open(run, ask, [body(1), body(2)])
        return run

    async def test_a_free_writer_is_taken(self, here: Any, run: Run) -> None:
        assert await here.log.claim(run.id, "w", 1, 60_000) == Claim(0, 2)
        assert 59_000 < await here.log.lease_ms(run.id) <= 60_000

    async def test_a_live_lease_holds_a_higher_attempt_off(self, here: Any, run: Run, body: Body) -> None:
        await here.log.claim(run.id, "w", 1, 60_000)
        claim = await here.log.claim(run.id, "w", 2, 60_000)
        assert claim.tail_seq == 2
        assert 59_000 < claim.held_ms <= 60_000
        assert await outcome(here.log.append(run.id, "w", 1, 1, [body(3)])) == (3, 1, False)

    async def test_a_claim_fences_the_attempt_before(self, here: Any, run: Run, world: Any, body: Body) -> None:
        await here.log.claim(run.id, "w", 1, world.fast_ms)
        await here.log.append(run.id, "w", 1, 1, [body(3)])
        await world.pass_ms(world.fast_ms)
        assert await here.log.lease_ms(run.id) == 0
        assert await here.log.claim(run.id, "w", 2, 60_000) == Claim(0, 3)
        assert await outcome(here.log.append(run.id, "w", 1, 2, [body(4)])) is Fenced
        with pytest.raises(Fenced):
            await here.log.claim(run.id, "w", 1, 60_000)
        assert await outcome(here.log.append(run.id, "w", 2, 1, [body(4)])) == (4, 1, False)

    async def test_a_lapsed_lease_still_writes_until_somebody_takes_over(
        self, here: Any, run: Run, world: Any, body: Body
    ) -> None:
        await here.log.claim(run.id, "w", 1, world.fast_ms)
        await world.pass_ms(world.fast_ms)
        assert await outcome(here.log.append(run.id, "w", 1, 1, [body(3)])) == (3, 1, False)

    async def test_a_release_lets_the_next_attempt_in_at_once(self, here: Any, run: Run) -> None:
        await here.log.claim(run.id, "w", 1, 60_000)
        assert await here.log.claim(run.id, "w", 1, 0) == Claim(0, 2)
        assert await here.log.lease_ms(run.id) == 0
        assert await here.log.claim(run.id, "w", 2, 60_000) == Claim(0, 2)

    async def test_a_release_does_not_fence(self, here: Any, run: Run, body: Body) -> None:
        await here.log.claim(run.id, "w", 1, 60_000)
        assert await here.log.claim(run.id, "w", 2, 0) == Claim(0, 2)
        assert await here.log.lease_ms(run.id) > 0
        assert await outcome(here.log.append(run.id, "w", 1, 1, [body(3)])) == (3, 1, False)

    async def test_a_claim_is_renewed(self, here: Any, run: Run, body: Body) -> None:
        await here.log.claim(run.id, "w", 1, 1_000)
        assert await here.log.claim(run.id, "w", 1, 60_000) == Claim(0, 2)
        assert await here.log.lease_ms(run.id) > 59_000
        await here.log.append(run.id, "w", 1, 1, [body(3)])
        await here.log.claim(run.id, "w", 1, 60_000)
        assert await outcome(here.log.append(run.id, "w", 1, 2, [body(4)])) == (4, 1, False)

    async def test_an_append_takes_and_renews_the_lease(self, here: Any, run: Run, body: Body) -> None:
        await here.log.append(run.id, "w", 1, 1, [body(3)], lease_ms=1_000)
        assert 0 < await here.log.lease_ms(run.id) <= 1_000
        await here.log.append(run.id, "w", 1, 2, [body(4)], lease_ms=60_000)
        assert (await here.log.claim(run.id, "w", 2, 60_000)).held_ms > 59_000

    async def test_a_higher_attempts_append_voids_the_lease_of_the_one_it_fences(self, here: Any, run: Run, body: Body) -> None:
        await here.log.claim(run.id, "w", 1, 60_000)
        await here.log.append(run.id, "w", 2, 1, [body(3)])
        assert await here.log.lease_ms(run.id) == 0
        assert await here.log.claim(run.id, "w", 3, 60_000) == Claim(0, 3)

    async def test_writers_have_leases_of_their_own(self, here: Any, run: Run) -> None:
        await here.log.claim(run.id, "w", 1, 1_000)
        assert await here.log.claim(run.id, "v", 2, 60_000) == Claim(0, 2)
        assert await here.log.lease_ms(run.id) > 59_000


class TestReading:
    @pytest.fixture
    async def log(self, world: Any, body: Body, ask: RunRequest) -> Log:
        """A log whose 2,400 events stand at a dozen times, several hundred at some."""
        log: Log = (await world.process()).log
        run = world.run(number=1)
        await log.open(run, ask, [body(1)])
        seq = 1
        for n, size in enumerate((1, 700, 3, 1, 1, 90, 1, 1, 600, 2, 999), 1):
            await world.pass_ms(n % 4)
            await log.append(run.id, "w", 1, n, [body(seq + m) for m in range(1, size + 1)])
            seq += size
        return log

    async def test_from_every_kind_of_place(self, log: Log, world: Any, body: Body) -> None:
        run_id = world.run(number=1).id
        entries = await log.read(run_id, 0, 100_000)
        assert [(entry.seq, entry.body) for entry in entries] == [(seq, body(seq)) for seq in range(1, 2401)]
        for seq in (0, 1, 2, 3, 700, 701, 702, 703, 705, 706, 800, 1400, 2399, 2400, 2401, 9999):
            ms = entries[seq - 1].ms if 0 < seq <= len(entries) else None
            assert await log.read(run_id, seq, 7) == entries[seq : seq + 7]
            assert await log.read(run_id, seq, 7, after_ms=ms) == entries[seq : seq + 7]
        assert await log.read(run_id, 5, 1500) == entries[5:1505]
        assert await log.read(run_id, 5, 0) == []

    async def test_every_event_is_found(self, log: Log, world: Any) -> None:
        run_id = world.run(number=1).id
        entries = await log.read(run_id, 0, 100_000)
        found = [await log.find(run_id, entry.seq) for entry in entries[::37]]
        assert found == entries[::37]
        assert [await log.find(run_id, seq) for seq in (0, 2401, 2**52)] == [None, None, None]

    async def test_from_between_any_two_events_of_batches_of_every_size(self, world: Any, body: Body, ask: RunRequest) -> None:
        """What was appended together may be stored together; a reader comes in and leaves anywhere in it all the same."""
        here = await world.process()
        run = world.run()
        await here.log.open(run, ask, [body(1), body(2)])
        sizes = (1, 5, 1, 1, 17, 2, 1, 3, 9)
        large = "x" * 6000  # a few of these are stored apart from each other
        for n, size in enumerate(sizes, 1):
            await world.pass_ms(n % 3)
            await here.log.append(run.id, "w", 1, n, [body((n, m, large * (n in (5, 7)))) for m in range(size)])
        entries = [entry for batch in here.batches for entry in batch.entries]
        assert [entry.seq for entry in entries] == list(range(1, sum(sizes) + 3))
        assert await everything(here.log, run.id) == entries
        fanout = Fanout(here.log, NoHistory())
        for seq in range(len(entries) + 1):
            ms = entries[seq - 1].ms if seq else None
            for limit in (1, 2, 4, 100):
                assert await here.log.read(run.id, seq, limit) == entries[seq : seq + limit]
                assert await here.log.read(run.id, seq, limit, after_ms=ms) == entries[seq : seq + limit]
            if ms is not None:
                assert await here.log.find(run.id, seq) == entries[seq - 1]
                for other in (ms - 1, ms + 1):
                    page = await here.log.read(run.id, seq, 2, after_ms=other)
                    assert page == entries[seq - 1 : seq + 1]
            for position in (Position(seq), Position(seq, ms)):
                assert await resumed(fanout, run.id, position, len(entries) - seq) == entries[seq:]
        await fanout.close()

    async def test_a_place_that_was_lost_is_not_continued(self, log: Log, world: Any) -> None:
        """The reader holds an event that the log lost; another stands at its number now, at a later time."""
        run_id = world.run(number=1).id
        entries = await log.read(run_id, 0, 100_000)
        lost = entries[1399]
        page = await log.read(run_id, lost.seq, 10, after_ms=lost.ms - 1)
        assert page[0].seq != lost.seq + 1


class TestManyRuns:
    async def test_a_tenants_unarchived_runs_newest_first(self, world: Any, body: Body, ask: RunRequest) -> None:
        log = (await world.process()).log
        times = (1_700_000_000_000, 1_700_000_000_001, 1_700_000_000_001, 1_700_000_000_002)
        runs = [world.run(created_ms=ms) for ms in times]
        for run in (*runs, world.run(tenant="other"), world.run(tenant="acme:other")):
            await log.open(run, ask, [])
        assert await log.unarchived_runs("acme") == runs[::-1]
        await log.append(runs[0].id, "w", 1, 1, [body(1)], state=RunState.COMPLETED, ends=True)
        assert [run.id for run in await log.unarchived_runs("acme")] == [run.id for run in runs[::-1]]
        await log.archived([runs[0].id])
        assert await log.unarchived_runs("acme") == runs[:0:-1]
        assert await log.unarchived_runs("nobody") == []

    async def test_what_runs_wait_for_is_remembered_until_it_is_forgotten(self, world: Any) -> None:
        log = (await world.process()).log
        await log.approve("acme", "run", "one", b"1")
        await log.approve("acme", "run", "two", b"2")
        await log.approve("other", "run", "one", b"3")
        assert sorted(await log.approvals("acme")) == [b"1", b"2"]
        await log.approve("acme", "run", "one", None)
        assert await log.approvals("acme") == [b"2"]

    async def test_an_expired_log_is_gone(self, world: Any, body: Body, ask: RunRequest) -> None:
        retention_ms = world.fast_ms * 4
        log = (await world.process(retention_ms=retention_ms)).log
        run = world.run()
        await log.open(run, ask, [body(1)])
        await log.append(run.id, "w", 1, 1, [body(2)])
        assert await log.unarchived_runs("acme") == [run]
        await world.pass_ms(retention_ms)
        assert await log.tail(run.id) is None
        assert await log.request(run.id) is None
        assert await log.unarchived_runs("acme") == []
        assert await log.active() == [run.id]
        await log.settle(run.id)
        assert (await log.active(), await log.unarchived(10)) == ([], [])

    async def test_appending_keeps_a_log_alive(self, world: Any, body: Body, ask: RunRequest) -> None:
        retention_ms = world.fast_ms * 4
        log = (await world.process(retention_ms=retention_ms)).log
        run = world.run()
        await log.open(run, ask, [body(1)])
        for n in range(1, 4):
            await world.pass_ms(retention_ms // 2)
            await log.append(run.id, "w", 1, n, [body(n)])
        assert (await log.tail(run.id)).seq == 4
        assert await log.request(run.id) == ask

    async def test_a_run_is_active_until_its_end_and_then_waits_for_the_archive(
        self, world: Any, body: Body, ask: RunRequest
    ) -> None:
        log = (await world.process()).log
        first, second = world.run(), world.run()
        for run in (first, second):
            await log.open(run, ask, [body(1)])
        assert sorted(await log.active()) == [first.id, second.id]
        await log.append(first.id, "w", 1, 1, [body(2)], state=RunState.COMPLETED, ends=True)
        assert (await log.active(), await log.unarchived(10), await log.unarchived_count()) == ([second.id], [first.id], 1)
        await log.archived([first.id])
        assert (await log.unarchived(10), await log.unarchived_count()) == ([], 0)

    async def test_settling(self, world: Any, body: Body, ask: RunRequest) -> None:
        """An unfinished run stays; a settled one, archived since, is not archived again."""
        log = (await world.process()).log
        run = world.run()
        await log.open(run, ask, [body(1)])
        await log.settle(run.id)
        assert (await log.active(), await log.unarchived(10)) == ([run.id], [])
        await log.append(run.id, "w", 1, 1, [body(2)], state=RunState.FAILED, ends=True)
        await log.archived([run.id])
        await log.settle(run.id)
        assert (await log.active(), await log.unarchived(10)) == ([], [])

    async def test_a_refused_ending_settles_nothing(self, world: Any, body: Body, ask: RunRequest) -> None:
        log = (await world.process()).log
        run = world.run()
        await log.open(run, ask, [body(1)])
        await log.append(run.id, "w", 2, 1, [body(2)])
        assert await outcome(log.append(run.id, "w", 1, 1, [body(3)], state=RunState.FAILED, ends=True)) is Fenced
        assert (await log.active(), await log.unarchived(10)) == ([run.id], [])

    async def test_a_named_lease_has_one_owner(self, world: Any) -> None:
        log = (await world.process()).log
        assert await log.lease("janitor", "a", world.fast_ms)
        assert await log.lease("janitor", "a", world.fast_ms)
        assert not await log.lease("janitor", "b", world.fast_ms)
        assert await log.lease("archive", "b", world.fast_ms)
        await world.pass_ms(world.fast_ms)
        assert await log.lease("janitor", "b", world.fast_ms)
        assert not await log.lease("janitor", "a", world.fast_ms)


class TestNotifications:
    async def test_a_watched_runs_batches_arrive_from_elsewhere(self, world: Any, body: Body, ask: RunRequest) -> None:
        here, there = await world.process(), await world.process()
        run, other = world.run(), world.run()
        here.log.watch(run.id)
        await here.until(lambda: here.watched == [run.id])
        await there.log.open(other, ask, [body(0)])
        await there.log.open(run, ask, [body(1)])
        await there.log.append(run.id, "w", 1, 1, [body(2), body(3)])
        await there.log.append(run.id, "w", 1, 1, [body(2), body(3)])
        await there.log.append(run.id, "w", 1, 2, [])
        await there.log.append(run.id, "w", 1, 3, [body(4)])
        await here.until(lambda: len(here.heard) == 4)
        _, opened, first, repeated, last = there.batches
        assert repeated == first
        assert here.batches == [opened, first, last]

    async def test_a_batch_of_any_size_arrives_whole(self, world: Any, body: Body, ask: RunRequest) -> None:
        here, there = await world.process(), await world.process()
        run = world.run()
        here.log.watch(run.id)
        await here.until(lambda: here.watched == [run.id])
        await there.log.open(run, ask, [body(1)])
        await there.log.append(run.id, "w", 1, 1, [body((n, "x" * 500)) for n in range(512)])
        await here.until(lambda: len(here.batches) == 2)
        assert here.batches == there.batches
        assert [entry.seq for entry in here.heard] == list(range(1, 514))

    async def test_ones_own_batches_are_heard_once(self, world: Any, body: Body, ask: RunRequest) -> None:
        here, there = await world.process(), await world.process()
        run = world.run()
        here.log.watch(run.id)
        await here.until(lambda: here.watched == [run.id])
        await here.log.open(run, ask, [body(1)])
        await here.log.append(run.id, "w", 1, 1, [body(2)])
        await there.log.append(run.id, "v", 1, 1, [body(3)])
        await here.until(lambda: len(here.heard) >= 3)
        assert [entry.seq for entry in here.heard] == [1, 2, 3]

    async def test_nothing_arrives_after_unwatch(self, world: Any, body: Body, ask: RunRequest) -> None:
        here, there = await world.process(), await world.process()
        run, other = world.run(), world.run()
        for one in (run, other):
            here.log.watch(one.id)
            await there.log.open(one, ask, [])
        await here.until(lambda: len(here.watched) == 2)
        here.log.unwatch(run.id)
        await there.log.append(run.id, "w", 1, 1, [body(1)])
        await there.log.append(other.id, "w", 1, 1, [body(2)])
        await here.until(lambda: len(here.heard) == 1)
        assert [batch.run_id for batch in here.batches] == [other.id]

    async def test_watching_again_says_so_again(self, world: Any, body: Body, ask: RunRequest) -> None:
        here, there = await world.process(), await world.process()
        run = world.run()
        await there.log.open(run, ask, [])
        here.log.watch(run.id)
        await here.until(lambda: len(here.watched) == 1)
        here.log.unwatch(run.id)
        here.log.watch(run.id)
        await here.until(lambda: len(here.watched) == 2)
        await there.log.append(run.id, "w", 1, 1, [body(1)])
        await here.until(lambda: len(here.heard) == 1)

    async def test_control_reaches_every_process_once(self, world: Any) -> None:
        here, there = await world.process(), await world.process()
        run_id = world.run().id
        for process in (here, there):  # what is published before a process has subscribed is lost
            process.log.watch(run_id)
        await here.until(lambda: here.watched == [run_id])
        await there.until(lambda: there.watched == [run_id])
        await here.log.publish_control(run_id, "cancel")
        assert here.control == [(run_id, "cancel")]
        await there.until(lambda: bool(there.control))
        await there.log.publish_control(run_id, "again")
        await here.until(lambda: len(here.control) == 2)
        assert here.control == there.control == [(run_id, "cancel"), (run_id, "again")]
