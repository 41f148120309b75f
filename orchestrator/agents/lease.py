"""An attempt's hold on its writer: renewed while there is nothing to write, given back when another attempt is to go on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.agents.job import Job
from orchestrator.clock import Clock
from orchestrator.errors import HeadgateError, LogRefused
from orchestrator.streamlog.log import Log, LogUnavailable
from orchestrator.streamlog.writer import EventWriter

_log = logging.getLogger(__name__)


class Lease:
    """Every append renews it as well. `refused` is told when it turns out that the writer is not ours any more."""

    def __init__(
        self, job: Job, *, log: Log, writer: EventWriter, clock: Clock, refused: Callable[[HeadgateError], None]
    ) -> None:
        self._job = job
        self._log = log
        self._writer = writer
        self._clock = clock
        self._refused = refused
        self._renewed_at = 0.0

    @property
    def due(self) -> bool:
        """Whether it needs renewing: a third of it has gone by since the log last heard of this attempt."""
        silent_s = self._clock.time() - max(self._writer.appended_at, self._renewed_at)
        return silent_s >= self._job.lease_ms / 3000

    async def renew(self) -> None:
        """Keep the writer while the upstream is silent; also how an attempt learns that it was replaced or its log is gone."""
        now = self._clock.time()
        try:
            await self._claim(self._job.lease_ms)
            self._renewed_at = now
        except LogUnavailable as error:
            _log.warning("renewing a lease failed: %s", error)
        except LogRefused as error:
            self._refused(error)

    async def release(self) -> None:
        try:
            await self._claim(0)
        except HeadgateError as error:
            _log.info("the lease was not released, it lapses by itself: %s", error)

    async def _claim(self, lease_ms: int) -> None:
        await self._log.claim(self._job.run.id, self._job.writer, self._job.attempt, lease_ms)
