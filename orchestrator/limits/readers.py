"""The places that readers of this process have taken. All of them are renewed together, while the process lives."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from types import TracebackType
from typing import Self

from orchestrator.errors import Unavailable
from orchestrator.limits import refusals
from orchestrator.limits.places import Places
from orchestrator.limits.terms import Terms
from orchestrator.metrics import Metrics

_log = logging.getLogger(__name__)


class Readers:
    """`async with` it. `origin` names the process. `uncounted` is told of a place that cannot be taken in time, and decides."""

    def __init__(
        self,
        places: Places,
        *,
        origin: str,
        lapse_s: float,
        wait_s: float,
        uncounted: Callable[[Exception], None],
        metrics: Metrics,
    ) -> None:
        self._places = places
        self._origin = origin
        self._lapse_s = lapse_s
        self._wait_s = wait_s
        self._uncounted = uncounted
        self._metrics = metrics
        self._numbers = count(1)
        self._reading: defaultdict[str, set[str]] = defaultdict(set)
        """Readers, by the set that holds their place."""
        self._renewing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._renewing = asyncio.create_task(self._keep_renewing(), name="readers' places")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.wait([self._renewing])

    @asynccontextmanager
    async def reading(self, terms: Terms) -> AsyncIterator[None]:
        """Raises TooManyStreams, and what `uncounted` raises."""
        reader = f"{self._origin}.{next(self._numbers)}"
        places = [place.key for place in terms.streams]
        try:
            await self._enter(reader, terms)
            for place in places:
                self._reading[place].add(reader)
            yield
        finally:
            for place in places:
                self._reading[place].discard(reader)
                if not self._reading[place]:
                    del self._reading[place]
            self._places.leave(reader, places)

    async def renew(self) -> None:
        """Raises Unavailable."""
        for place, readers in list(self._reading.items()):
            await self._places.prolong(place, list(readers), round(self._lapse_s * 1000))

    async def _enter(self, reader: str, terms: Terms) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                full = await self._places.enter(reader, terms.streams, terms.streams_text, round(self._lapse_s * 1000))
        except (Unavailable, TimeoutError) as error:
            self._uncounted(error)
            return
        if full is not None:
            self._metrics.limited("streams")
            raise refusals.too_many_streams(full)

    async def _keep_renewing(self) -> None:
        """Each place is tried to be renewed twice before it lapses."""
        while True:
            await asyncio.sleep(self._lapse_s / 3)
            try:
                await self.renew()
            except Unavailable as error:
                _log.info("readers' places were not renewed: %s", error)
            except Exception:  # noqa: BLE001 - the outermost edge of this task: the next round comes
                _log.exception("readers' places were not renewed")
