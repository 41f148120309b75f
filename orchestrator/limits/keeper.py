"""Keeps what limits hold for runs that go on, wherever they do: renews it, so that it lapses only for those that were lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from orchestrator.limits.limits import Limits
from orchestrator.runs import Run

_AT_ONCE = 100


class Keeper:
    """`look_up` is asked about each run once, when it is first seen."""

    def __init__(self, look_up: Callable[[str], Awaitable[Run | None]], limits: Limits) -> None:
        self._look_up = look_up
        self._limits = limits
        self._known: dict[str, Run | None] = {}
        """The active runs; None: nothing is held for it."""

    async def keep(self, active: Sequence[str]) -> None:
        """Renew what is held for these runs. Raises Unavailable."""
        if self._limits.unlimited:
            return
        known = self._known
        self._known = {run_id: known[run_id] for run_id in active if run_id in known}
        new = [run_id for run_id in active if run_id not in known]
        for start in range(0, len(new), _AT_ONCE):
            await asyncio.gather(*map(self._learn, new[start : start + _AT_ONCE]))
        await self._limits.renew(run for run in self._known.values() if run is not None)

    async def _learn(self, run_id: str) -> None:
        run = await self._look_up(run_id)
        if run is not None:
            self._known[run_id] = None if run.hold is None else run
