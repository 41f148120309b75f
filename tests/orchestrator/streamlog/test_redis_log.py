"""What only the log in Redis can get wrong: lost replies, reconnection, slowness, a Redis that went back in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.log import AppendSkipped, Batch, Log, LogMissing, LogUnavailable
from orchestrator.streamlog.notices import decode_batch
from orchestrator.streamlog.redis import BATCH_BYTES, PAGE

pytestmark = pytest.mark.local
Body = Callable[[object], bytes]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def here(redis_world: Any) -> Any:
    return await redis_world.process()


@pytest.fixture
async def run(here: Any, redis_world: Any, ask: RunRequest, body: Body) -> Run:
    run: Run = redis_world.run()
    await here.log.open(run, ask, [body("open")])
    return run


async def insist(log: Log, run_id: str, writer: str, seq: int, bodies: list[bytes]) -> None:
    """Append until there is an answer."""
    while True:
        try:
            await log.append(run_id, writer, 1, seq, bodies)
        except LogUnavailable:
            continue
        return


class TestLostReplies:
    """P1: 50 writers of 200 appends each, while connections are cut between Redis's work and its reply."""

    WRITERS, APPENDS = 50, 200

    async def write_all(self, redis_world: Any, proxy: Any, run: Run, body: Body, *, counted: bool) -> tuple[Any, int]:
        process = await redis_world.process(url=proxy.url)
        proxy.cut_chance = 0.04

        async def write(writer: str) -> None:
            for n in range(1, self.APPENDS + 1):
                await insist(process.log, run.id, writer, n if counted else 0, [body((writer, n))])

        await asyncio.gather(*(write(f"w{n}") for n in range(self.WRITERS)))
        proxy.cut_chance = 0.0
        return process, proxy.cuts

    async def test_ten_thousand_events_without_hole_or_duplicate(
        self, here: Any, redis_world: Any, proxy: Any, run: Run, body: Body
    ) -> None:
        process, cuts = await self.write_all(redis_world, proxy, run, body, counted=True)
        entries = await here.log.read(run.id, 0, 20_000)
        expected = {body((f"w{w}", n)) for w in range(self.WRITERS) for n in range(1, self.APPENDS + 1)}
        assert cuts > 3
        assert [entry.seq for entry in entries] == list(range(1, 10_002))
        assert {entry.body for entry in entries[1:]} == expected
        assert sorted({entry.seq for entry in process.heard}) == list(range(2, 10_002))
        assert {entry.seq: entry for entry in process.heard} == {entry.seq: entry for entry in entries[1:]}

    async def test_saboteur_without_producer_seq_it_breaks(
        self, here: Any, redis_world: Any, proxy: Any, run: Run, body: Body
    ) -> None:
        _, cuts = await self.write_all(redis_world, proxy, run, body, counted=False)
        assert cuts > 3
        assert (await here.log.tail(run.id)).seq > 10_001


class TestScripts:
    async def test_a_forgotten_script_is_sent_again(self, here: Any, redis: Redis, run: Run, body: Body) -> None:
        await redis.script_flush()
        assert (await here.log.append(run.id, "w", 1, 1, [body(1)])).first_seq == 2
        await redis.script_flush()
        assert [entry.seq for entry in await here.log.read(run.id, 1, 5)] == [2]
        assert [entry.seq for entry in here.heard] == [1, 2]

    async def test_keys_expire_together(self, here: Any, redis_world: Any, redis: Redis, run: Run, body: Body) -> None:
        keys = [f"{redis_world.prefix}:{{{run.id}}}:{name}" for name in ("events", "meta", "request")]
        day_ms = 86_400_000
        assert [day_ms - 5000 < await redis.pttl(key) <= day_ms for key in keys] == [True] * 3
        for key in keys:
            await redis.persist(key)
        await here.log.append(run.id, "w", 1, 1, [body(1)])
        assert [await redis.pttl(key) for key in keys] == [-1] * 3  # not refreshed with every append
        await here.log.append(run.id, "w", 1, 2, [body(2)], state=RunState.COMPLETED, ends=True)
        assert [day_ms - 5000 < await redis.pttl(key) <= day_ms for key in keys] == [True] * 3

    async def test_a_full_redis_is_unavailable_and_nothing_is_half_done(
        self, here: Any, redis: Redis, run: Run, body: Body
    ) -> None:
        await redis.config_set("maxmemory", "1")
        try:
            with pytest.raises(LogUnavailable):
                await here.log.append(run.id, "w", 1, 1, [body(1)])
        finally:
            await redis.config_set("maxmemory", "0")
        assert [entry.seq for entry in await here.log.read(run.id, 0, 5)] == [1]
        assert (await here.log.append(run.id, "w", 1, 1, [body(1)])).repeated is False


class TestBatches:
    """What is appended together is stored together, within bounds that keep every command short."""

    @pytest.fixture
    def key(self, redis_world: Any, run: Run) -> str:
        return f"{redis_world.prefix}:{{{run.id}}}:events"

    async def test_an_append_is_one_entry_of_the_stream(self, here: Any, redis: Redis, key: str, run: Run, body: Body) -> None:
        appended = await here.log.append(run.id, "w", 1, 1, [body(n) for n in range(100)])
        await here.log.append(run.id, "w", 1, 2, [])
        lines = b"\n".join(body(n) for n in range(100))
        stored = await redis.xrange(key)
        assert stored[1:] == [(f"{appended.ms}-101".encode(), {b"100": lines})]

    async def test_no_read_command_gives_more_than_its_bound(
        self, here: Any, redis: Redis, key: str, run: Run, body: Body
    ) -> None:
        """The fullest batches that a writer makes, after a stretch of events that came one by one."""
        for n in range(1, 41):
            await here.log.append(run.id, "w", 1, n, [body(n)])
        full = [body("x" * 400) for _ in range(512)]
        for n in range(41, 61):
            await here.log.append(run.id, "w", 1, n, full)
        stored = [len(lines) for _, batch in await redis.xrange(key) for lines in batch.values()]
        assert max(stored) <= BATCH_BYTES
        assert PAGE * BATCH_BYTES <= 2 << 20
        await redis.config_resetstat()
        entries = await here.log.read(run.id, 0, 100_000)
        assert [entry.seq for entry in entries] == list(range(1, 41 + 20 * 512 + 1))
        commands = (await redis.info("commandstats"))["cmdstat_xrange"]["calls"]
        assert len(stored) / PAGE < commands < len(stored) / PAGE + 4

    async def test_a_page_of_a_long_log_does_not_read_it_all(self, here: Any, redis: Redis, run: Run, body: Body) -> None:
        full = [body("x" * 100) for _ in range(64)]
        for n in range(1, 201):
            await here.log.append(run.id, "w", 1, n, full)
        before = (await redis.info("stats"))["total_net_output_bytes"]
        entries = await here.log.read(run.id, 1000, 512)
        sent = (await redis.info("stats"))["total_net_output_bytes"] - before
        assert [entry.seq for entry in entries] == list(range(1001, 1513))
        assert sent < 3 * sum(len(entry.body) for entry in entries)  # of 2.3 MB

    async def test_a_large_event_is_a_batch_of_its_own(self, here: Any, redis: Redis, key: str, run: Run, body: Body) -> None:
        large = body("x" * 3 * BATCH_BYTES)
        await here.log.append(run.id, "w", 1, 1, [body(1), large, large, body(2), body(3)])
        assert [list(batch) for _, batch in await redis.xrange(key)] == [[b"1"], [b"1"], [b"1"], [b"1"], [b"2"]]
        entries = await here.log.read(run.id, 1, 10)
        assert [(entry.seq, entry.body) for entry in entries] == list(enumerate([body(1), large, large, body(2), body(3)], 2))

    async def test_what_is_not_one_line_is_refused(self, here: Any, run: Run, body: Body) -> None:
        """It would be taken for two events, and every later one of its batch would be found at a wrong number."""
        for bodies in ([b"{\n}"], [body(1), b"{\n}", body(2)], [b"{}\n"]):
            with pytest.raises(ValueError, match="one line"):
                await here.log.append(run.id, "w", 1, 1, bodies)
        assert [entry.seq for entry in await here.log.read(run.id, 0, 10)] == [1]

    @pytest.mark.parametrize("size", [1, 7])
    async def test_the_index_of_what_is_kept_is_trimmed_too(
        self, size: int, redis: Redis, redis_world: Any, ask: RunRequest, kept_body: Body
    ) -> None:
        here = await redis_world.process(max_events=100)
        run = redis_world.run()
        await here.log.open(run, ask, [kept_body(0)])
        for n in range(1, 1001):
            await here.log.append(run.id, "w", 1, n, [kept_body((n, m)) for m in range(size)])
            tail = await here.log.tail(run.id)
            assert tail.seq - tail.first_seq + 1 >= min(tail.seq, 100)
        stem = f"{redis_world.prefix}:{{{run.id}}}"
        assert await redis.llen(f"{stem}:kept") == await redis.xlen(f"{stem}:events") <= 300 / size


class TestLostTail:
    """P4: Redis comes back as it was some time ago."""

    async def test_a_writer_of_a_log_that_went_back_is_refused(
        self, here: Any, redis_world: Any, redis: Redis, run: Run, body: Body
    ) -> None:
        """The log forgot append 2. Renumbering append 3 into its place would give a reader's position to another event.

        The next attempt may write. Its events stand at the same numbers with other ids, which is how a reader is told.
        """
        keys = [f"{redis_world.prefix}:{{{run.id}}}:{name}" for name in ("events", "meta", "request")]
        await here.log.append(run.id, "w", 1, 1, [body(1)])
        snapshot = [await redis.dump(key) for key in keys]
        await here.log.append(run.id, "w", 1, 2, [body(2)])
        lost = (await here.log.read(run.id, 0, 10))[2]
        for key, value in zip(keys, snapshot, strict=True):
            await redis.restore(key, 0, value, replace=True)
        with pytest.raises(AppendSkipped):
            await here.log.append(run.id, "w", 1, 3, [body(3)])
        await redis_world.pass_ms(2)  # no Redis restarts within a millisecond
        await here.log.append(run.id, "w", 2, 1, [body("other"), body("more")])
        found = await here.log.find(run.id, lost.seq)
        assert (found.seq, found.body) == (lost.seq, body("other"))
        assert found.stream_id != lost.stream_id
        page = await here.log.read(run.id, lost.seq, 10, after_ms=lost.ms)
        assert page[0].seq == lost.seq

    async def test_a_lost_place_is_not_continued_though_the_clock_went_back(
        self, here: Any, redis_world: Any, redis: Redis, body: Body
    ) -> None:
        """A replica took over without the event 1000-2, and its clock is behind: what stands there now is older."""
        run_id = redis_world.run().id
        for stream_id in ("100-1", "150-2", "1200-3"):
            await redis.xadd(f"{redis_world.prefix}:{{{run_id}}}:events", {"1": body(stream_id)}, id=stream_id)
        assert [entry.seq for entry in await here.log.read(run_id, 2, 10, after_ms=1000)] == [2, 3]
        assert [entry.seq for entry in await here.log.read(run_id, 2, 10, after_ms=150)] == [3]

    async def test_a_trimmed_place_is_not_taken_for_another_of_its_millisecond(
        self, here: Any, redis_world: Any, redis: Redis
    ) -> None:
        run_id = redis_world.run().id
        for stream_id, lines in (("1000-6", b"4\n5\n6"), ("1000-7", b"7"), ("1001-9", b"8\n9")):
            key = f"{redis_world.prefix}:{{{run_id}}}:events"
            await redis.xadd(key, {str(lines.count(b"\n") + 1): lines}, id=stream_id)
        for seq, seen in ((1, [4, 5]), (2, [4, 5]), (3, [4, 5]), (4, [5, 6]), (6, [7, 8]), (7, [8, 9]), (9, [])):
            ms = 1000 if seq < 8 else 1001
            assert [int(entry.body) for entry in await here.log.read(run_id, seq, 2, after_ms=ms)] == seen
            assert [entry.seq for entry in await here.log.read(run_id, seq, 2)] == seen
        assert await here.log.find(run_id, 3) is None

    async def test_a_writer_of_a_log_that_is_gone_is_refused(
        self, here: Any, redis_world: Any, redis: Redis, run: Run, body: Body
    ) -> None:
        await here.log.append(run.id, "w", 1, 1, [body(1)])
        await redis.delete(*[f"{redis_world.prefix}:{{{run.id}}}:{name}" for name in ("events", "meta", "request")])
        with pytest.raises(LogMissing):
            await here.log.append(run.id, "w", 1, 2, [body(2)])


class TestConnection:
    async def test_it_connects_again_and_watches_again(
        self, here: Any, redis_world: Any, proxy: Any, run: Run, body: Body
    ) -> None:
        away = await redis_world.process(url=proxy.url)
        away.log.watch(run.id)
        await away.until(lambda: away.watched == [run.id])
        proxy.cut()
        await insist(away.log, run.id, "w", 1, [body(1)])
        await away.until(lambda: len(away.watched) == 2)
        await here.log.append(run.id, "v", 1, 1, [body(2)])
        await away.until(lambda: bool(away.heard) and away.heard[-1].body == body(2))

    async def test_what_was_cancelled_is_still_heard(self, here: Any, run: Run, body: Body) -> None:
        """Whoever appended is gone before the reply is there. The append happened, and its readers get it."""
        task = asyncio.create_task(here.log.append(run.id, "w", 1, 1, [body(1)]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await here.log.append(run.id, "w", 1, 2, [body(2)])
        assert [entry.body for entry in here.heard[1:]] == [body(1), body(2)]

    async def test_a_dead_redis_is_found_out_within_the_bound(self, redis_world: Any, proxy: Any, run: Run, body: Body) -> None:
        loop = asyncio.get_running_loop()
        away = await redis_world.process(url=proxy.url, call_timeout_s=0.4, wait_s=0.1)
        proxy.refusing = True
        proxy.cut()
        for _ in range(3):
            began = loop.time()
            with pytest.raises(LogUnavailable):
                await away.log.append(run.id, "w", 1, 1, [body(1)])
            assert loop.time() - began < 1.0
        proxy.refusing = False
        await insist(away.log, run.id, "w", 1, [body(1)])

    async def test_a_slow_redis_is_found_out_within_the_bound(
        self, redis_world: Any, proxy: Any, ask: RunRequest, body: Body
    ) -> None:
        """P11, three times as fast: every answer takes 0.6 s, admission is bounded by 0.2 s."""
        loop = asyncio.get_running_loop()
        away = await redis_world.process(url=proxy.url, call_timeout_s=0.6, wait_s=0.1, admission_s=0.2)
        proxy.reply_delay_s = 0.6

        async def admit() -> float:
            began = loop.time()
            with pytest.raises(LogUnavailable):
                await away.log.open(redis_world.run(), ask, [body(1)])
            return loop.time() - began

        waits = []
        for _ in range(8):
            waits += await asyncio.gather(*(admit() for _ in range(10)))
        assert max(waits) < 0.4
        proxy.reply_delay_s = 0.0
        async with asyncio.timeout(5):
            while True:
                try:
                    await away.log.ping()
                except LogUnavailable:
                    continue
                break

    async def test_a_wrong_password_is_unavailability(self, redis_world: Any, redis_url: str) -> None:
        with pytest.raises(LogUnavailable):
            await redis_world.process(url=redis_url.replace("redis://:", "redis://:not"), wait_s=0.1)

    async def test_closing_fails_what_waits(self, redis_world: Any, proxy: Any, run: Run, body: Body) -> None:
        away = await redis_world.process(url=proxy.url)
        proxy.reply_delay_s = 60
        waiting = asyncio.create_task(away.log.append(run.id, "w", 1, 1, [body(1)]))
        await asyncio.sleep(0)
        await away.log.close()
        with pytest.raises(LogUnavailable):
            await waiting
        proxy.reply_delay_s = 0
        with pytest.raises(LogUnavailable):
            await away.log.ping()


class TestFrames:
    """Notifications come over the network: what is not one is ignored, for the log itself tells what is missing."""

    def test_a_frame_is_a_batch(self) -> None:
        batch = decode_batch("task-1", b'me 4 2 100 99\n{"type":"A"}\n{"type":"B"}')
        assert isinstance(batch, Batch)
        assert (batch.run_id, batch.prev_seq, batch.prev_ms) == ("task-1", 4, 99)
        assert [(entry.seq, entry.ms, entry.body) for entry in batch.entries] == [
            (5, 100, b'{"type":"A"}'),
            (6, 100, b'{"type":"B"}'),
        ]

    def test_garbage_is_not(self) -> None:
        rng = random.Random(3)
        good = b'me 4 1 100 99\n{"type":"A"}'
        for _ in range(2000):
            at = rng.randrange(len(good))
            frame = good[:at] + bytes(rng.randrange(256) for _ in range(rng.randrange(3))) + good[at + rng.randrange(3) :]
            batch = decode_batch("task-1", frame)
            assert batch is None or len(batch.entries) == 1
        for frame in (b"", b"\n", b"me 1 0 3 2", b"me 1 0 3 2\n", b"me 1 4 3 2\nx", b"me 1 1 x 2\ny", b"me 1 1 2\ny"):
            assert decode_batch("task-1", frame) is None
