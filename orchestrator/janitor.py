"""The janitor: gives every run that nobody executes any more its ending, and starts durable runs whose start was lost.

One process at a time does the rounds, by a lease in the log's store. Doing too much is harmless: a closed log refuses a second
ending, and Temporal refuses a second workflow of the same run.

A round costs one call per run that is being executed, many of them in flight together. Temporal is asked about a bounded number
of runs per round, those first that have waited longest: thousands of queued runs are no reason to storm it.
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
from orchestrator.runs import Run
from orchestrator.streamlog.log import Log
from orchestrator.workflows.worker import Execution, Temporal

_log = logging.getLogger(__name__)

_LEASE = "janitor"
_LOOKS_AT_ONCE = 100
_ASKS_AT_ONCE = 10
_ASKS_PER_ROUND = 200

_Item = TypeVar("_Item")


class Janitor:
    """`round_s`: how often it goes round. `grace_s`: how long a run may have no live lease before it is looked into."""

    def __init__(
        self, log: Log, ender: Ender, temporal: Temporal, clock: Clock, *, owner: str, round_s: float = 2.0, grace_s: float = 5.0
    ) -> None:
        self._log = log
        self._ender = ender
        self._temporal = temporal
        self._clock = clock
        self._owner = owner
        self._round_s = round_s
        self._grace_s = grace_s
        self._unattended: dict[str, float] = {}

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
        if not await self._log.lease(_LEASE, self._owner, round(self._round_s * 3000)):
            return False
        active = await self._log.active()
        known = set(active)
        self._unattended = {run_id: since for run_id, since in self._unattended.items() if run_id in known}
        waiting: list[Run] = []
        await _each(lambda run_id: self._look(run_id, waiting), active, _LOOKS_AT_ONCE)
        waiting.sort(key=lambda run: self._unattended[run.id])
        await _each(self._end_lost, [run for run in waiting if not run.durable], _LOOKS_AT_ONCE)
        await _each(self._ask_temporal, [run for run in waiting if run.durable][:_ASKS_PER_ROUND], _ASKS_AT_ONCE)
        return True

    async def _rounds(self) -> None:
        while True:
            try:
                await self.round()
            except Unavailable as error:
                _log.warning("a janitor's round was cut short: %s", error)
            except Exception:  # noqa: BLE001 - the outermost edge of this task: the next round comes
                _log.exception("a janitor's round failed")
            await asyncio.sleep(self._round_s)

    async def _look(self, run_id: str, waiting: list[Run]) -> None:
        """Note the run in `waiting` if nobody has held it for the grace period."""
        if await self._log.lease_ms(run_id):
            self._unattended.pop(run_id, None)
            return
        run = await self._log.run(run_id)
        if run is None or run.ended_ms is not None:
            await self._log.settle(run_id)
        elif self._clock.time() - self._unattended.setdefault(run_id, self._clock.time()) >= self._grace_s:
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
