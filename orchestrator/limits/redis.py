"""Limits and budgets in Redis: `limits.Limits` over the scripts in `lua/`, on the connection that the log appends with.

Every question is one call, and waits `wait_s` at most for its answer: half a second, or less where no answer is needed. What was
asked and not answered in time may have happened all the same: it is taken back behind it, and where that is lost too it lapses.
Replicas count by Redis's clock, which is one for all of them; `now_us` is for tests that want to own it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from types import TracebackType
from typing import Any, Self

from orchestrator.errors import LimitsUnavailable, Unavailable
from orchestrator.limits import refusals
from orchestrator.limits.limits import ADMITTED, LAPSE_S, RESERVED_S, Admitted, Estimate, Used
from orchestrator.limits.places import Places
from orchestrator.limits.quota import Hold, Quota, Rate
from orchestrator.limits.readers import Readers
from orchestrator.limits.scripts import script
from orchestrator.limits.terms import AllTerms, Policy, Terms
from orchestrator.metrics import Metrics, NoMetrics
from orchestrator.runs import Principal, Run
from orchestrator.spending.money import Price
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.log import LogUnavailable
from orchestrator.streamlog.scripts import Script
from orchestrator.streamlog.wire import Command

_log = logging.getLogger(__name__)

_NOTHING = Estimate(0, 0)
_WAIT_S = 0.5
_WAIT_OPEN_S = 0.1
"""Whoever would rather not count than refuse still has the log to wait for, and a second for everything."""


class RedisLimits:
    """`async with` it. `retention_ms` is for how long a run's log may be read, and so its usage be told a second time."""

    unlimited = False

    def __init__(
        self,
        connection: Connection,
        policy: Policy,
        *,
        prefix: str = "hg",
        retention_ms: int = 86_400_000,
        wait_s: float | None = None,
        lapse_s: float = LAPSE_S,
        reserved_s: float = RESERVED_S,
        origin: str | None = None,
        metrics: Metrics | None = None,
        now_us: Callable[[], int] = lambda: 0,
    ) -> None:
        self._connection = connection
        self._open = policy.when_unavailable == "open"
        self._terms = AllTerms(policy, prefix)
        self._keep_ms = 2 * retention_ms
        self._wait_s = (_WAIT_OPEN_S if self._open else _WAIT_S) if wait_s is None else wait_s
        self._lapse_ms = round(lapse_s * 1000)
        self._reserved_ms = round(reserved_s * 1000)
        self._metrics = metrics or NoMetrics()
        self._now_us = now_us
        self._admit, self._extend, self._settle = script("admit"), script("extend"), script("settle")
        self._places = Places(connection, now_us)
        self.readers = Readers(
            self._places,
            origin=origin or secrets.token_hex(6),
            lapse_s=lapse_s,
            wait_s=self._wait_s,
            uncounted=self._uncounted,
            metrics=self._metrics,
        )

    async def __aenter__(self) -> Self:
        await self.readers.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.readers.__aexit__(kind, error, traceback)

    # -- runs ------------------------------------------------------------------------------------------------------------

    def counts_tokens(self, principal: Principal) -> bool:
        return self._terms.of(principal).counts_tokens

    async def admit(
        self, principal: Principal, run_id: str, created_ms: int, estimate: Estimate | None, *, may_repeat: bool = False
    ) -> Admitted:
        terms = self._terms.of(principal)
        if not terms.limits_runs:
            return ADMITTED
        args: Command = (
            self._now_us(),
            run_id,
            self._lapse_ms,
            self._reserved_ms,
            self._keep_ms,
            *_words(estimate or _NOTHING),
            terms.rates_text,
            terms.runs_text,
            terms.budgets_text(created_ms),
            int(may_repeat),
        )
        try:
            refused, which, wait_ms, granted, *levels = await self._ask(self._admit, terms.stem, run_id, args)
        except (Unavailable, asyncio.CancelledError) as error:
            if not may_repeat:  # otherwise what would be taken back may be another's
                self._take_back(terms.stem, run_id, [place.key for place in terms.runs])
            if not isinstance(error, Unavailable):
                raise
            self._uncounted(error)
            return ADMITTED
        quota = _quota(terms, levels)
        match refused:
            case b"rates":
                limit = terms.rates[which - 1]
                self._metrics.limited(limit.kind)
                raise refusals.too_fast(limit, wait_ms, quota)
            case b"places":
                self._metrics.limited("runs")
                raise refusals.too_many_runs(terms.runs[which - 1], quota)
            case b"budgets":
                self._metrics.limited("budgets")
                raise refusals.spent(terms.budgets[which - 1])
        return Admitted(quota, _hold(terms, estimate or _NOTHING, granted))

    async def extend(self, run: Run, want: Estimate) -> int:
        args = (self._now_us(), run.id, self._reserved_ms, *_words(want))
        try:
            return int(await self._ask(self._extend, self._terms.stem(run.tenant), run.id, args))
        except Unavailable as error:
            self._uncounted(error)
            return want.output_tokens

    async def settle(self, run: Run, used: Used) -> None:
        if run.hold is None or not run.hold.reserved:
            return
        stem = self._terms.stem(run.tenant)
        await self._connection.run(self._settle, _keys(stem, run.id), self._settled(run.id, used))

    def cancel(self, run: Run) -> None:
        if run.hold is not None:
            self._take_back(self._terms.stem(run.tenant), run.id, run.hold.places)

    async def renew(self, runs: Iterable[Run]) -> None:
        held: defaultdict[str, list[str]] = defaultdict(list)
        reserved: defaultdict[str, list[str]] = defaultdict(list)
        for run in runs:
            if run.hold is None:
                continue
            for place in run.hold.places:
                held[place].append(run.id)
            if run.hold.reserved:
                reserved[f"{self._terms.stem(run.tenant)}reservations"].append(run.id)
        for place, who in held.items():
            await self._places.prolong(place, who, self._lapse_ms)
        for place, who in reserved.items():
            await self._places.prolong(place, who, self._reserved_ms)

    def reading(self, principal: Principal) -> AbstractAsyncContextManager[None]:
        terms = self._terms.of(principal)
        return self.readers.reading(terms) if terms.streams else nullcontext()

    def _uncounted(self, why: Exception) -> None:
        """Limits cannot be checked in time. Raises LimitsUnavailable unless they need not be."""
        self._metrics.limited("uncounted" if self._open else "unavailable")
        if not self._open:
            raise LimitsUnavailable(retry_after_s=1.0) from why

    # -- Redis -----------------------------------------------------------------------------------------------------------

    async def _ask(self, script: Script, stem: str, run_id: str, args: Command) -> Any:
        try:
            async with asyncio.timeout(self._wait_s):
                return await self._connection.run(script, _keys(stem, run_id), args)
        except TimeoutError:
            raise LogUnavailable(retry_after_s=1.0) from None

    def _take_back(self, stem: str, run_id: str, places: Iterable[str]) -> None:
        """As if the run had never been let in. It is not known whether Redis knows the script, and nobody waits to be told."""
        try:
            self._connection.post(
                (b"EVAL", self._settle.text, 2, *_keys(stem, run_id), *self._settled(run_id, Used())),
                *((b"ZREM", place, run_id) for place in places),
            )
        except Unavailable:
            _log.info("what limits hold for a run that never began will lapse", extra={"workflow_id": run_id})

    def _settled(self, run_id: str, used: Used) -> Command:
        return self._now_us(), run_id, used.tokens, used.nano, self._keep_ms


def _keys(stem: str, run_id: str) -> tuple[bytes, bytes]:
    return f"{stem}run:{run_id}".encode(), f"{stem}reservations".encode()


def _words(estimate: Estimate) -> tuple[int, int, int, int]:
    """A prompt's tokens may all be cached ones; no price of theirs is assumed that could be too low."""
    price = estimate.price or Price(0, 0)
    return estimate.prompt_tokens, estimate.output_tokens, max(price.input, price.cached_input or 0), price.output


def _quota(terms: Terms, levels: Sequence[int]) -> Quota | None:
    """Of the key's and the tenant's limits those that are nearer."""
    nearest: dict[str, Rate] = {}
    for limit, remaining, reset_ms in zip(terms.rates, levels[::2], levels[1::2], strict=True):
        known = nearest.get(limit.kind)
        if known is None or remaining < known.remaining:
            nearest[limit.kind] = Rate(limit.limit, remaining, reset_ms)
    return Quota(nearest.get("requests"), nearest.get("tokens")) if nearest else None


def _hold(terms: Terms, estimate: Estimate, granted: int) -> Hold | None:
    if not terms.runs and not terms.counts_tokens:
        return None
    places = tuple(place.key for place in terms.runs)
    return Hold(places, terms.counts_tokens, granted if terms.budgets else None, estimate.prompt_tokens)
