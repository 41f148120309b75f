"""Where a call's tokens come from: a run's own budget, and what its key and its tenant may still spend.

A purse gives tokens in steps, ahead of their use, so that nobody waits for Redis between two pieces of an answer. What it gave,
to however many agents in however many processes, never exceeds what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, Protocol

import msgspec

from orchestrator import endings
from orchestrator.errors import Failure
from orchestrator.limits.limits import Estimate, Limits
from orchestrator.runs import Run
from orchestrator.streamlog.log import Log

THRESHOLD_PERCENT = 80


class Begun(msgspec.Struct, frozen=True):
    """What a call is given: its prompt is paid, and so are `granted` tokens of its answer, which can have `most` at best."""

    granted: int
    most: int | None = None


class Purse(Protocol):
    exceeded: Failure
    """Why a run stopped, when this purse was empty."""

    async def begin(self, prompt: int, wanted: int) -> Begun | None:
        """Pay a call's prompt and some of its answer. None: there is not enough left. Raises Unavailable."""

    async def more(self, used: int, wanted: int) -> int:
        """`used` more tokens of the call's answer are used. Returns how many more it has, up to `wanted`. 0: that was all."""

    async def end(self, used: int, unused: int, unsaid: int) -> None:
        """The call used so many more (negative: fewer) than it told so far, prompt included, and has no use for the rest.

        `unsaid` is how much of that was for its answer.
        """

    def standing(self) -> dict[str, Any] | None:
        """The payload of `BUDGET_THRESHOLD` when it is empty, if it is one that tells."""


class RunPurse:
    """The budget of one run, shared by all its agents. `notice` is told once how it stands, when it passes the threshold."""

    exceeded = endings.RUN_BUDGET_EXCEEDED

    def __init__(self, log: Log, run_id: str, budget: int, notice: Callable[[dict[str, Any]], None]) -> None:
        self._log = log
        self._run_id = run_id
        self._notice = notice
        self._budget = budget
        self._mark = ceil(budget * THRESHOLD_PERCENT / 100)
        self._used = self._untold = 0

    async def begin(self, prompt: int, wanted: int) -> Begun | None:
        granted, held = await self._spend(0, prompt + wanted)
        if granted <= prompt:
            await self._spend(0, -granted)
            return None
        self._untold = prompt
        return Begun(granted - prompt, self._budget - held + granted - prompt)

    async def more(self, used: int, wanted: int) -> int:
        granted, _ = await self._spend(used, wanted)
        return granted

    async def end(self, used: int, unused: int, unsaid: int) -> None:
        await self._spend(used, -unused)

    async def _spend(self, used: int, wanted: int) -> tuple[int, int]:
        used, self._untold = used + self._untold, 0
        spent = await self._log.spend(self._run_id, used, wanted, self._budget)
        self._used = spent.used
        if spent.used - used < self._mark <= spent.used:
            self._notice(self._stands(THRESHOLD_PERCENT))
        return spent.granted, spent.held

    def standing(self) -> dict[str, Any]:
        return self._stands(100)

    def _stands(self, threshold: int) -> dict[str, Any]:
        return {
            "tokens_used": self._used,
            "tokens_budget": self._budget,
            "usage_percent": self._used * 1000 // self._budget / 10,
            "threshold_percent": threshold,
        }


class Prepaid(msgspec.Struct, frozen=True):
    """What admission has paid of a call: so much of its prompt, and of its answer."""

    prompt: int
    begun: Begun


class LimitsPurse:
    """What the run's key and tenant have left. `first` is for the first call, if it is the one that admission had in mind."""

    exceeded = endings.BUDGET_EXCEEDED

    def __init__(self, limits: Limits, run: Run, first: Prepaid | None) -> None:
        self._limits = limits
        self._run = run
        self._first = first
        self._spare = 0

    async def begin(self, prompt: int, wanted: int) -> Begun | None:
        first, self._first = self._first, None
        if first is not None and prompt <= first.prompt and first.begun.granted:
            return first.begun
        paid, have = (0, self._spare) if first is None else (first.prompt, first.begun.granted)
        missing = max(wanted - have, 0)
        extra = max(prompt - paid, 0)
        granted = await self._ask(extra, max(missing, 1)) if extra or missing else 0
        if have + granted <= 0 or (extra and not granted):
            return None
        self._spare = 0
        return Begun(have + granted, have + granted if granted < missing else None)

    async def more(self, used: int, wanted: int) -> int:
        return await self._ask(0, wanted) if wanted else 0

    async def end(self, used: int, unused: int, unsaid: int) -> None:
        """What a run has used is settled once, when it has ended. Until then the agent's next call has what this one left."""
        self._spare += unsaid

    def standing(self) -> None:
        """How a tenant's or a key's budget stands is not for every reader of a run."""

    async def _ask(self, prompt: int, wanted: int) -> int:
        return await self._limits.extend(self._run, Estimate(prompt, wanted, self._run.price))
