"""The meter against purses of its own making: what it lets through, when it asks for more, and that it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator import endings
from orchestrator.errors import LimitsUnavailable
from orchestrator.spending.meter import Meter, tokens
from orchestrator.spending.purses import Begun
from orchestrator.upstreams.upstream import Delta, Finish, Piece, Usage


class Purse:
    """Has `left` tokens, and gives an answer only while `open` is set."""

    exceeded = endings.RUN_BUDGET_EXCEEDED

    def __init__(self, left: int, *, failures: int = 0, clamps: bool = False) -> None:
        self.left = left
        self.failures = failures
        self.clamps = clamps
        self.asked: list[tuple[Any, ...]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def begin(self, prompt: int, wanted: int) -> Begun | None:
        self.asked.append(("begin", prompt, wanted))
        self._fail()
        given = min(self.left, prompt + wanted)
        if given <= prompt:
            return None
        self.left -= given
        return Begun(given - prompt, self.left + given - prompt if self.clamps else None)

    async def more(self, used: int, wanted: int) -> int:
        self.asked.append(("more", used, wanted))
        await self.open.wait()
        self._fail()
        given = min(self.left, wanted)
        self.left -= given
        return given

    async def end(self, used: int, unused: int, unsaid: int) -> None:
        self.asked.append(("end", used, unused))
        self.left += unused

    def standing(self) -> None: ...

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise LimitsUnavailable


class Wall:
    """How often it was met."""

    def __init__(self) -> None:
        self.met = 0

    def __call__(self) -> None:
        self.met += 1


def words(count: int) -> list[Piece]:
    return [Delta(content="word ") for _ in range(count)]


async def say(meter: Meter, pieces: Sequence[Piece]) -> int:
    """As an agent does; returns how many pieces could be paid for."""
    return len(pieces) if meter.covers(pieces) else len(await meter.afford(pieces))


async def test_more_is_paid_ahead_so_that_nobody_waits() -> None:
    purse, wall = Purse(1000), Wall()
    meter = Meter([purse], wall, step=20)
    assert await meter.begin(7, None) is None
    for _ in range(200):
        assert meter.covers(words(1))
        await asyncio.sleep(0)
    await meter.end(Usage(7, 200, 207))
    assert purse.left == 1000 - 207
    assert wall.met == 0
    assert len(purse.asked) < 30
    assert sum(used for what, used, _ in purse.asked if what in ("more", "end")) == 200


async def test_an_answer_faster_than_the_purse_waits_for_it_and_loses_nothing() -> None:
    purse, wall = Purse(1000), Wall()
    meter = Meter([purse], wall, step=20)
    await meter.begin(0, None)
    purse.open.clear()
    assert meter.covers(words(15))
    assert not meter.covers(words(30))
    waiting = asyncio.create_task(meter.afford(words(30)))
    await asyncio.sleep(0)
    assert not waiting.done()
    purse.open.set()
    assert len(await waiting) == 30
    assert meter.usage == Usage(0, 45, 45, estimated=True)


@pytest.mark.parametrize("batch", [1, 3, 7, 500])
async def test_at_the_wall_the_answer_has_exactly_what_there_was(batch: int) -> None:
    purse, wall = Purse(100), Wall()
    meter = Meter([purse], wall, step=16)
    await meter.begin(10, None)
    said = 0
    while not wall.met:
        said += await say(meter, words(batch))
    assert (said, wall.met, purse.left) == (90, 1, 0)
    assert meter.wall is purse
    assert meter.usage == Usage(10, 90, 100, estimated=True)


async def test_who_stops_right_at_the_wall_is_given_a_moment_to_say_why() -> None:
    purse, wall = Purse(20), Wall()
    meter = Meter([purse], wall, step=16)
    await meter.begin(0, None)
    assert await say(meter, words(20)) == 20
    assert meter.covers([Finish(0, "stop"), Usage(0, 20, 20)])
    await meter.end(Usage(0, 20, 20))
    assert wall.met == 0
    assert purse.left == 0


async def test_who_stays_silent_at_the_wall_is_stopped_all_the_same() -> None:
    purse = Purse(20)
    met = asyncio.Event()
    meter = Meter([purse], met.set, step=16)
    await meter.begin(0, None)
    assert await say(meter, words(20)) == 20
    async with asyncio.timeout(0.25):
        await met.wait()


async def test_of_two_purses_the_emptier_one_is_the_wall_and_nothing_is_kept_of_the_other() -> None:
    rich, poor, wall = Purse(1000), Purse(30), Wall()
    meter = Meter([rich, poor], wall, step=16)
    await meter.begin(5, None)
    said = 0
    while not wall.met:
        said += await say(meter, words(4))
    await meter.end(meter.usage)
    assert (said, meter.wall) == (25, poor)
    assert (rich.left, poor.left) == (1000 - 30, 0)


async def test_a_prompt_that_cannot_be_paid_is_the_wall_and_costs_nothing() -> None:
    rich, poor, wall = Purse(1000), Purse(30), Wall()
    meter = Meter([rich, poor], wall)
    await meter.begin(30, None)
    assert (wall.met, meter.wall) == (1, poor)
    assert (rich.left, poor.left) == (1000, 30)


async def test_a_second_upstream_is_paid_for_before_it_is_asked() -> None:
    purse, wall = Purse(100), Wall()
    meter = Meter([purse], wall, step=20)
    await meter.begin(30, None)
    assert (await meter.twice(), purse.left) == (True, 20)
    await meter.end(Usage(60, 5, 65))
    assert (wall.met, purse.left) == (0, 35)


@pytest.mark.parametrize("batch", [1, 7])
async def test_what_no_second_upstream_costs_is_the_answers(batch: int) -> None:
    purse, wall = Purse(100), Wall()
    meter = Meter([purse], wall, step=20)
    await meter.begin(30, None)
    assert await meter.twice()
    meter.once()
    said = 0
    while not wall.met:
        said += await say(meter, words(batch))
    assert (said, purse.left) == (70, 0)
    await meter.end(Usage(30, 70, 100))
    assert purse.left == 0


async def test_a_second_upstream_that_cannot_be_paid_costs_nothing() -> None:
    rich, poor, wall = Purse(1000), Purse(75), Wall()
    meter = Meter([rich, poor], wall, step=20)
    await meter.begin(30, None)
    assert (await meter.twice(), wall.met) == (False, 0)
    assert (rich.left, poor.left) == (950, 25)
    await meter.end(Usage(30, 5, 35))
    assert (rich.left, poor.left) == (965, 40)


@pytest.mark.parametrize(("asked", "most"), [(None, 90), (500, 90), (90, None), (10, None)])
async def test_an_upstream_is_told_how_long_it_may_be_where_that_is_less_than_asked(asked: int | None, most: int | None) -> None:
    purse = Purse(100, clamps=True)
    meter = Meter([purse], Wall(), step=16)
    assert await meter.begin(10, asked) == most
    meter.stopped(["length"])
    assert meter.wall is (None if most is None else purse)


async def test_an_upstream_that_ends_sooner_was_stopped_by_nobody() -> None:
    meter = Meter([Purse(100, clamps=True)], Wall(), step=16)
    await meter.begin(10, None)
    meter.stopped(["stop"])
    assert meter.wall is None


async def test_an_outage_stops_no_answer_and_is_waited_for() -> None:
    purse, wall = Purse(1000, failures=1), Wall()
    meter = Meter([purse], wall, step=16)
    await meter.begin(0, None)
    purse.failures = 1
    assert await say(meter, words(40)) == 40
    assert wall.met == 0


async def test_who_is_given_up_leaves_nothing_behind_that_waits_to_be_paid() -> None:
    """A process that stopped while Redis was away went on asking it for tokens that nobody would say."""
    purse, wall = Purse(100), Wall()
    meter = Meter([purse], wall, step=10)
    await meter.begin(0, None)
    purse.open.clear()
    before = asyncio.all_tasks()
    assert meter.covers(words(6))
    [paying] = asyncio.all_tasks() - before
    meter.close()
    await asyncio.wait([paying], timeout=1.0)
    assert paying.cancelled()


async def test_what_the_upstream_reports_takes_the_place_of_what_was_counted() -> None:
    purse = Purse(1000)
    meter = Meter([purse], Wall(), step=16)
    await meter.begin(50, None)
    await say(meter, words(40))
    await meter.end(Usage(45, 60, 105))
    assert purse.left == 1000 - 105


async def test_calls_follow_each_other_on_one_meter() -> None:
    purse = Purse(1000)
    meter = Meter([purse], Wall(), step=16)
    for _ in range(3):
        await meter.begin(10, 5)
        await say(meter, words(5))
        await meter.end(Usage(10, 5, 15))
    assert purse.left == 1000 - 45


@pytest.mark.parametrize(
    ("delta", "count"),
    [
        (Delta(content="word"), 1),
        (Delta(content=""), 0),
        (Delta(content="a sentence that came in one piece"), 9),
        (Delta(content="ein Stück"), 5),
        (Delta(content="你好"), 1),
        (Delta(reasoning="hm"), 1),
        (Delta(logprobs={}), 0),
        (Delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "look"}}]), 1),
        (Delta(tool_calls=[{"index": 0, "function": {"arguments": '{"where": "everywhere"}'}}]), 6),
        (Delta(function_call={"name": "f", "arguments": None}), 1),
    ],
)
def test_tokens_are_counted_without_a_tokenizer(delta: Delta, count: int) -> None:
    assert tokens(delta) == count
