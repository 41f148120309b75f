"""The two implementations answer alike: seeded random lives of a run, told to both."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestrator.events import Entry, Event, encode
from orchestrator.runs import RunRequest, RunState
from orchestrator.streamlog.log import Appended, Claim, Log, LogRefused, Tail

AT = "2026-01-01T00:00:00.000Z"

pytestmark = pytest.mark.local
Step = Callable[[Log, str], Any]
LEASE_MS = 3_600_000


def some_bodies(rng: random.Random, mark: object) -> list[bytes]:
    """A batch of any size: none, one, a few, many; small, large, mixed; deltas and others."""
    size = rng.choice((1, 1, 1, 1, 2, 3, 5, 0, 40, 200))
    fill = rng.choice((0, 0, 0, 100, 1000, 20_000 if size < 6 else 0))
    deltas = rng.choice((0.0, 0.9, 1.0, 1.0))

    def one(n: int) -> bytes:
        kind = "LLM_PARTIAL" if rng.random() < deltas else "PROGRESS"
        return encode(Event(kind, AT, message=f"{mark} {n} " + "x" * rng.randint(0, fill)))

    return [one(n) for n in range(size)]


def a_life(rng: random.Random) -> list[Step]:
    """Some sixty calls by three writers of up to three attempts, most of them in order, some repeated, skipped or late."""
    held: dict[tuple[str, int], int] = {}

    def append(number: int) -> Step:
        writer, attempt = rng.choice("uvw"), rng.choice((1, 1, 1, 2, 2, 3))
        seq = max(0, held.get((writer, attempt), 0) + rng.choice((1, 1, 1, 1, 1, 1, 0, -1, 2, -17)))
        held[writer, attempt] = max(seq, held.get((writer, attempt), 0))
        bodies = some_bodies(rng, number)
        state = rng.choice((None, None, *RunState))
        ends = rng.random() < 0.03
        lease_ms = rng.choice((0, 0, LEASE_MS))
        return lambda log, run_id: log.append(run_id, writer, attempt, seq, bodies, state=state, ends=ends, lease_ms=lease_ms)

    def claim() -> Step:
        writer, attempt, lease_ms = rng.choice("uvw"), rng.choice((1, 2, 3)), rng.choice((0, LEASE_MS))
        return lambda log, run_id: log.claim(run_id, writer, attempt, lease_ms)

    return [append(number) if rng.random() < 0.85 else claim() for number in range(60)]


async def told(log: Log, step: Step, run_id: str) -> Any:
    """What is answered, without what depends on the clock."""
    try:
        answer = await step(log, run_id)
    except LogRefused as refusal:
        return type(refusal).__name__
    match answer:
        case Appended(first_seq, count, _, repeated):
            return first_seq, count, repeated
        case Claim(held_ms, tail_seq):
            return held_ms > 0, tail_seq
    raise AssertionError(answer)


def bare(entries: Sequence[Entry]) -> list[tuple[int, bytes]]:
    """Entries without their time, which is each log's own."""
    return [(entry.seq, entry.body) for entry in entries]


async def glances(log: Log, run_id: str, rng: random.Random) -> list[Any]:
    """What readers get who come at random places, some of whom know the time of theirs, and some of them wrongly."""
    entries = await log.read(run_id, 0, 100_000)
    seen: list[Any] = []
    for _ in range(40):
        seq, limit, off = rng.randint(0, len(entries) + 1), rng.choice((1, 2, 7, 512, 5000)), rng.choice((None, 0, 0, -1))
        entry = await log.find(run_id, seq)
        ms = None if off is None or entry is None else entry.ms + off
        seen += [None if entry is None else bare([entry]), bare(await log.read(run_id, seq, limit, after_ms=ms))]
    return seen


async def remains(log: Log, run_id: str) -> Any:
    run, tail = await log.run(run_id), await log.tail(run_id)
    assert run is not None
    assert isinstance(tail, Tail)
    entries = bare(await log.read(run_id, 0, 100_000))
    kept = bare(await log.kept(run_id))
    lists = sorted(await log.active()), sorted(await log.unarchived(100))
    times = run.started_ms is None, run.ended_ms is None
    return run.state, times, tail.seq, tail.first_seq, tail.closed, entries, kept, lists, await log.lease_ms(run_id) > 0


@pytest.mark.parametrize("seed", range(40))
async def test_both_implementations_answer_alike(seed: int, memory_world: Any, redis_world: Any, ask: RunRequest) -> None:
    rng = random.Random(seed)
    memory, redis = (await memory_world.process()).log, (await redis_world.process()).log
    run = memory_world.run()
    first = some_bodies(rng, "open")
    for log in (memory, redis):
        await log.open(run, ask, first)
    for number, step in enumerate(a_life(rng)):
        expected = await told(memory, step, run.id)
        assert await told(redis, step, run.id) == expected, f"step {number}"
    assert await remains(redis, run.id) == await remains(memory, run.id)
    assert await glances(redis, run.id, random.Random(seed)) == await glances(memory, run.id, random.Random(seed))
