"""The janitor: gives every run that nobody executes any more its ending, and starts durable runs whose start was lost.

One process at a time does the rounds, by a lease in the log's store. Doing too much is harmless: a closed log refuses a second
ending, and Temporal refuses a second workflow of the same run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_ERROR, TIMEOUT, WORKER_LOST
from orchestrator.errors import Unavailable
from orchestrator.runs import Run
from orchestrator.streamlog.log import Log
from orchestrator.workflows.worker import Execution, Temporal

_log = logging.getLogger(__name__)

_LEASE = "janitor"


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

    async def round(self) -> None:
        """Look at every run that may be unfinished."""
        active = await self._log.active()
        self._unattended = {run_id: since for run_id in active if (since := self._unattended.get(run_id)) is not None}
        for run_id in active:
            await self._look(run_id)

    async def _rounds(self) -> None:
        while True:
            try:
                if await self._log.lease(_LEASE, self._owner, round(self._round_s * 3000)):
                    await self.round()
            except Unavailable as error:
                _log.warning("a janitor's round was cut short: %s", error)
            await asyncio.sleep(self._round_s)

    async def _look(self, run_id: str) -> None:
        tail = await self._log.tail(run_id)
        run = None if tail is None else await self._log.run(run_id)
        if run is None or tail is None or tail.closed:
            await self._log.settle(run_id)
        elif await self._log.lease_ms(run_id):
            self._unattended.pop(run_id, None)
        elif self._clock.time() - self._unattended.setdefault(run_id, self._clock.time()) >= self._grace_s:
            await self._attend(run)

    async def _attend(self, run: Run) -> None:
        """Nobody has held the run for a while."""
        if not run.durable:
            await self._fail(run, Execution.FAILED)
            return
        match await self._temporal.execution(run):
            case Execution.RUNNING:
                self._unattended.pop(run.id, None)  # Temporal will give it to a worker
            case Execution.MISSING:
                request = await self._log.request(run.id)
                if request is None:
                    await self._ender.fail(run.id, ENGINE_ERROR)
                else:
                    _log.warning("the start of a run was lost; starting it", extra={"workflow_id": run.id})
                    await self._temporal.start(run, request, generation=1)
            case closed:
                await self._fail(run, closed)

    async def _fail(self, run: Run, execution: Execution) -> None:
        _log.warning("a run was left without an ending; ending it", extra={"workflow_id": run.id, "execution": execution})
        match execution:
            case Execution.CANCELLED:
                await self._ender.cancel(run.id, None, None)
            case Execution.TIMED_OUT:
                await self._ender.fail(run.id, TIMEOUT)
            case _:
                await self._ender.fail(run.id, WORKER_LOST)
