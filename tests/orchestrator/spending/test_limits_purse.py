"""What an agent's calls ask of its key's and tenant's budgets, one call after the other."""

from __future__ import annotations

from orchestrator.limits.limits import Estimate, Unlimited
from orchestrator.runs import Run
from orchestrator.spending.meter import Meter
from orchestrator.spending.purses import Begun, LimitsPurse, Prepaid
from orchestrator.upstreams.upstream import Delta, Usage

RUN = Run("task-1", "acme", "m", ("agent",), 0)


class Pot(Unlimited):
    """Gives from what it has."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.asked: list[tuple[int, int]] = []

    async def extend(self, run: Run, want: Estimate) -> int:
        self.asked.append((want.prompt_tokens, want.output_tokens))
        granted = min(want.output_tokens, self.left - want.prompt_tokens)
        if granted <= 0:
            return 0
        self.left -= want.prompt_tokens + granted
        return granted


class Calls:
    """An agent that calls again and again."""

    def __init__(self, pot: Pot, first: Prepaid | None = None, step: int = 100) -> None:
        self.walls = 0
        self.meter = Meter([LimitsPurse(pot, RUN, first)], self._wall, step)

    def _wall(self) -> None:
        self.walls += 1

    async def call(self, prompt: int, words: int) -> int | None:
        most = await self.meter.begin(prompt, None)
        said = [Delta(content="word ")] * words
        if not self.walls and not self.meter.covers(said):
            await self.meter.afford(said)
        await self.meter.end(Usage(prompt, words, prompt + words))
        return most


async def test_what_admission_has_paid_is_not_paid_again() -> None:
    pot = Pot(1000)
    calls = Calls(pot, Prepaid(30, Begun(100)))
    assert await calls.call(30, 40) is None
    assert pot.asked == []


async def test_what_an_agent_adds_to_the_prompt_is_asked_for() -> None:
    pot = Pot(1000)
    await Calls(pot, Prepaid(30, Begun(100))).call(75, 40)
    assert pot.asked == [(45, 1)]


async def test_the_next_call_has_what_the_last_one_left() -> None:
    pot = Pot(10_000)
    calls = Calls(pot)
    for _ in range(5):
        await calls.call(10, 20)
    assert pot.asked == [(10, 100), (10, 20), (10, 20), (10, 20), (10, 20)]
    assert calls.walls == 0


async def test_what_an_upstream_said_more_than_it_was_paid_for_is_paid_by_the_next_call() -> None:
    pot = Pot(10_000)
    calls = Calls(pot)
    await calls.meter.begin(10, None)
    await calls.meter.end(Usage(10, 130, 140))
    await calls.call(10, 20)
    assert pot.asked == [(10, 100), (10, 130)]


async def test_an_empty_pot_is_the_wall_and_a_nearly_empty_one_is_told() -> None:
    pot = Pot(50)
    calls = Calls(pot)
    assert await calls.call(10, 10) == 40
    assert pot.left == 0
    assert calls.walls == 0
    await calls.meter.begin(10, None)
    assert calls.walls == 1
