"""The two implementations answer alike: seeded random lives of a run, told to both."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.runs import RunRequest, RunState
from orchestrator.streamlog.log import Appended, Claim, Log, LogRefused, Tail

pytestmark = pytest.mark.local
Step = Callable[[Log, str], Any]
LEASE_MS = 3_600_000


def a_life(rng: random.Random, body: Callable[[object], bytes]) -> list[Step]:
    """Some sixty calls by three writers of up to three attempts, most of them in order, some repeated, skipped or late."""
    held: dict[tuple[str, int], int] = {}

    def append(number: int) -> Step:
        writer, attempt = rng.choice("uvw"), rng.choice((1, 1, 1, 2, 2, 3))
        seq = max(0, held.get((writer, attempt), 0) + rng.choice((1, 1, 1, 1, 1, 1, 0, -1, 2, -17)))
        held[writer, attempt] = max(seq, held.get((writer, attempt), 0))
        bodies = [body((number, n)) for n in range(rng.choice((1, 1, 1, 2, 5, 0)))]
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


async def remains(log: Log, run_id: str) -> Any:
    run, tail = await log.run(run_id), await log.tail(run_id)
    assert run is not None
    assert isinstance(tail, Tail)
    entries = [(entry.seq, entry.body) for entry in await log.read(run_id, 0, 10_000)]
    lists = sorted(await log.active()), sorted(await log.unarchived(100))
    times = run.started_ms is None, run.ended_ms is None
    return run.state, times, tail.seq, tail.first_seq, tail.closed, entries, lists, await log.lease_ms(run_id) > 0


@pytest.mark.parametrize("seed", range(40))
async def test_both_implementations_answer_alike(
    seed: int, memory_world: Any, redis_world: Any, ask: RunRequest, body: Callable[[object], bytes]
) -> None:
    rng = random.Random(seed)
    memory, redis = (await memory_world.process()).log, (await redis_world.process()).log
    run = memory_world.run()
    for log in (memory, redis):
        await log.open(run, ask, [body("open")])
    for number, step in enumerate(a_life(rng, body)):
        expected = await told(memory, step, run.id)
        assert await told(redis, step, run.id) == expected, f"step {number}"
    assert await remains(redis, run.id) == await remains(memory, run.id)
