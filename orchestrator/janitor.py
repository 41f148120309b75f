"""The janitor: gives every run that nobody executes any more its ending, starts durable runs whose start was lost, and lets what
limits hold for the others not lapse.

One process at a time does the rounds, by a lease in the log's store. Doing too much is harmless: a closed log refuses a second
ending, and Temporal refuses a second workflow of the same run.

A round costs one call per run that is being executed, many of them in flight together. Temporal is asked about a bounded number
of runs per round, those first that have waited longest: thousands of queued runs are no reason to storm it.

How soon an ending comes matters to whoever reads a run that died with its process. It takes until the run's lease has lapsed, at
most a round until that is seen, and the grace. So the janitor's own lease is short, whoever takes it begins a round at once, and
runs that can only be ended are looked at again in every step, not in every round.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_ERROR, TIMEOUT, WORKER_LOST
from orchestrator.errors import Unavailable
from orchestrator.limits.keeper import Keeper
from orchestrator.runs import Run
from orchestrator.streamlog.log import Log, LogUnavailable
from orchestrator.workflows.worker import Execution, Temporal

_log = logging.getLogger(__name__)

_LEASE = "janitor"
_LEASE_S = 5.0
_STEP_S = 1.0
_LOOKS_AT_ONCE = 100
_ASKS_AT_ONCE = 10
_ASKS_PER_ROUND = 200

_Item = TypeVar("_Item")


class Janitor:
    """`round_s`: how often it goes round. `grace_s`: how long a run may have no live lease before it is looked into."""

    def __init__(
        self,
        log: Log,
        ender: Ender,
        temporal: Temporal,
        keeper: Keeper,
        clock: Clock,
        *,
        owner: str,
        round_s: float = 5.0,
        grace_s: float = 3.0,
    ) -> None:
        self._log = log
        self._ender = ender
        self._temporal = temporal
        self._keeper = keeper
        self._clock = clock
        self._owner = owner
        self._round_s = round_s
        self._grace_s = grace_s
        self._next_round = 0.0
        self._unattended: dict[str, float] = {}
        """Since when each run has been seen without a live lease."""
        self._dying: set[str] = set()
        """Those of them that are not durable."""

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._rounds(), name="janitor")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def round(self) -> bool:
        """Look at every run that may be unfinished. False if another process does the rounds.

        Raises Unavailable when a backend is away; what can be done without it is done.
        """
        if not await self._is_ours():
            return False
        self._next_round = self._clock.time() + self._round_s
        active = await self._log.active()
        known = set(active)
        self._unattended = {run_id: since for run_id, since in self._unattended.items() if run_id in known}
        waiting = await self._look_at(active)
        await self._keeper.keep(active)
        await _each(self._ask_temporal, waiting[:_ASKS_PER_ROUND], _ASKS_AT_ONCE)
        return True

    async def _rounds(self) -> None:
        level = logging.WARNING
        while True:
            try:
                if self._clock.time() >= self._next_round:
                    await self.round()
                elif await self._is_ours():
                    await self._look_at(list(self._dying))
                level = logging.WARNING
            except Unavailable as error:
                if isinstance(error, LogUnavailable):
                    self._forget()  # nobody could renew a lease meanwhile: what was seen before proves nothing after
                _log.log(level, "a janitor's round was cut short: %s", error)
                level = logging.DEBUG  # an outage is told once
            except Exception:  # noqa: BLE001 - the outermost edge of this task: the next round comes
                _log.exception("a janitor's round failed")
            await asyncio.sleep(min(_STEP_S, self._round_s))

    async def _is_ours(self) -> bool:
        """Whether this process is the one that looks, from now on or still. The one that begins to, knows nothing."""
        if await self._log.lease(_LEASE, self._owner, round(_LEASE_S * 1000)):
            return True
        self._forget()
        return False

    def _forget(self) -> None:
        self._unattended.clear()
        self._dying.clear()
        self._next_round = 0.0

    async def _look_at(self, run_ids: Sequence[str]) -> list[Run]:
        """End the runs that only their lost process could go on with. Returns others that nobody has held for the grace."""
        waiting: list[Run] = []
        await _each(lambda run_id: self._look(run_id, waiting), run_ids, _LOOKS_AT_ONCE)
        waiting.sort(key=lambda run: self._unattended[run.id])
        await _each(self._end_lost, [run for run in waiting if not run.durable], _LOOKS_AT_ONCE)
        return [run for run in waiting if run.durable]

    async def _look(self, run_id: str, waiting: list[Run]) -> None:
        """Note the run in `waiting` if nobody has held it for the grace period."""
        if await self._log.lease_ms(run_id):
            self._unattended.pop(run_id, None)
            self._dying.discard(run_id)
            return
        run = await self._log.run(run_id)
        if run is None or run.ended_ms is not None:
            self._dying.discard(run_id)
            await self._log.settle(run_id)
            return
        if not run.durable:
            self._dying.add(run_id)
        now = self._clock.time()
        if now - self._unattended.setdefault(run_id, now) >= self._grace_s:
            waiting.append(run)

    async def _ask_temporal(self, run: Run) -> None:
        """What a durable run that nobody holds is waiting for."""
        match await self._temporal.execution(run):
            case Execution.RUNNING:
                self._unattended[run.id] = self._clock.time()  # Temporal will give it to a worker
            case Execution.MISSING:
                await self._start(run)
            case Execution.CANCELLED:
                _tell(run)
                await self._ender.cancel(run.id, None, None)
            case Execution.TIMED_OUT:
                _tell(run)
                await self._ender.fail(run.id, TIMEOUT)
            case Execution.FAILED | Execution.COMPLETED:
                await self._end_lost(run)

    async def _start(self, run: Run) -> None:
        """Later generations outrank earlier ones, of which nothing is known here: a run's age in seconds tells them apart."""
        request = await self._log.request(run.id)
        if request is None:
            await self._ender.fail(run.id, ENGINE_ERROR)
            return
        _log.warning("the start of a run was lost; starting it", extra={"workflow_id": run.id})
        generation = max(1, int(self._clock.time() - run.created_ms / 1000))
        await self._temporal.start(run, request, generation)
        self._unattended[run.id] = self._clock.time()

    async def _end_lost(self, run: Run) -> None:
        _tell(run)
        await self._ender.fail(run.id, WORKER_LOST)


def _tell(run: Run) -> None:
    _log.warning("a run was left without an ending; ending it", extra={"workflow_id": run.id})


async def _each(work: Callable[[_Item], Awaitable[None]], items: Sequence[_Item], at_once: int) -> None:
    """Do this with each, some at a time. One that fails does not hold up the others; a backend that is away ends it."""
    for start in range(0, len(items), at_once):
        outcomes = await asyncio.gather(*map(work, items[start : start + at_once]), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, Unavailable):
                _log.error("a run could not be looked after", exc_info=outcome)
        for outcome in outcomes:
            if isinstance(outcome, Unavailable):
                raise outcome
