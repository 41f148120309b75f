"""Which limits concern a caller, and how they are written for the scripts: lines of fields, as `lua/shared.lua` reads them.

A caller's key comes before its tenant, so where both refuse, the message speaks of the key. All Redis keys of a tenant have one
hash tag, so that a cluster keeps them together. No I/O.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from orchestrator.limits.quota import NO_LIMITS, Allowance, Budget
from orchestrator.runs import Principal

_SANE = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_KEPT = 4096
_DAY_MS = 86_400_000
_KEEP_MS = {"day": 8 * _DAY_MS, "month": 40 * _DAY_MS}
"""How long a period's counts outlive its last run: as long as runs that began in it may go on."""

Whose = Literal["key", "tenant"]
Period = Literal["day", "month"]


class Policy(msgspec.Struct, frozen=True):
    """What is configured. `key` and `tenant` are for every one of them that has no limits of its own."""

    key: Allowance = NO_LIMITS
    tenant: Allowance = NO_LIMITS
    tenants: Mapping[str, Allowance] = {}
    when_unavailable: Literal["open", "closed"] = "closed"

    def of(self, principal: Principal) -> tuple[Allowance, Allowance]:
        """What holds for the caller's key, and for its tenant."""
        own, tenant = principal.limits, self.tenants.get(principal.tenant)
        return (
            self.key if own is None else own.over(self.key),
            self.tenant if tenant is None else tenant.over(self.tenant),
        )


class Limit(NamedTuple):
    """One limit per minute, or number of places, and the Redis key that counts for it."""

    whose: Whose
    kind: Literal["requests", "tokens", "runs", "streams"]
    limit: int
    key: str


class Allotment(NamedTuple):
    whose: Whose
    period: Period
    budget: Budget
    key: str


class Terms(msgspec.Struct, frozen=True):
    """All limits of a caller. `*_text` is what the scripts are given."""

    stem: str
    rates: tuple[Limit, ...]
    runs: tuple[Limit, ...]
    streams: tuple[Limit, ...]
    budgets: tuple[Allotment, ...]
    rates_text: str
    runs_text: str
    streams_text: str

    @property
    def limits_runs(self) -> bool:
        return bool(self.rates or self.runs or self.budgets)

    @property
    def counts_tokens(self) -> bool:
        return bool(self.budgets) or any(rate.kind == "tokens" for rate in self.rates)

    def budgets_text(self, created_ms: int) -> str:
        """The budgets of the periods in which a run was created."""
        if not self.budgets:
            return ""
        then = time.gmtime(created_ms / 1000)
        names = {"day": time.strftime("%Y-%m-%d", then), "month": time.strftime("%Y-%m", then)}
        return "\n".join(
            f"{key}{names[period]}\t{_count(budget.tokens)}\t{_count(budget.nano)}\t{_KEEP_MS[period]}"
            for _, period, budget, key in self.budgets
        )


class AllTerms:
    """The terms of all callers, the recent ones remembered."""

    def __init__(self, policy: Policy, prefix: str) -> None:
        self._policy = policy
        self._prefix = prefix
        self._known = lru_cache(_KEPT)(self._make)

    def of(self, principal: Principal) -> Terms:
        return self._known(principal.tenant, principal.key_id, principal.limits)

    def stem(self, tenant: str) -> str:
        """What all Redis keys of a tenant begin with."""
        return f"{self._prefix}:limits:{{{_word(tenant)}}}:"

    def _make(self, tenant: str, key_id: str, limits: Allowance | None) -> Terms:
        stem = self.stem(tenant)
        of_key, of_tenant = self._policy.of(Principal(tenant, key_id, limits=limits))
        both: tuple[tuple[Whose, Allowance, str], ...] = (
            ("key", of_key, f"{stem}key:{_word(key_id)}:"),
            ("tenant", of_tenant, f"{stem}tenant:"),
        )
        limits_of = [limit for whose, allowance, at in both for limit in _limits(whose, allowance, at)]
        rates = tuple(limit for limit in limits_of if limit.kind in ("requests", "tokens"))
        runs = tuple(limit for limit in limits_of if limit.kind == "runs")
        streams = tuple(limit for limit in limits_of if limit.kind == "streams")
        return Terms(
            stem=stem,
            rates=rates,
            runs=runs,
            streams=streams,
            budgets=tuple(budget for whose, allowance, at in both for budget in _budgets(whose, allowance, at)),
            rates_text="\n".join(f"{rate.key}\t{rate.kind}\t{rate.limit}" for rate in rates),
            runs_text=_places(runs),
            streams_text=_places(streams),
        )


def _limits(whose: Whose, allowance: Allowance, at: str) -> Iterator[Limit]:
    if (limit := allowance.requests_per_minute) is not None:
        yield Limit(whose, "requests", limit, f"{at}requests")
    if (limit := allowance.tokens_per_minute) is not None:
        yield Limit(whose, "tokens", limit, f"{at}tokens")
    if (limit := allowance.runs) is not None:
        yield Limit(whose, "runs", limit, f"{at}runs")
    if (limit := allowance.streams) is not None:
        yield Limit(whose, "streams", limit, f"{at}streams")


def _budgets(whose: Whose, allowance: Allowance, at: str) -> Iterator[Allotment]:
    if allowance.day is not None:
        yield Allotment(whose, "day", allowance.day, f"{at}day:")
    if allowance.month is not None:
        yield Allotment(whose, "month", allowance.month, f"{at}month:")


def _places(limits: tuple[Limit, ...]) -> str:
    return "\n".join(f"{limit.key}\t{limit.limit}" for limit in limits)


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _word(name: str) -> str:
    """A name as part of a Redis key. Names that a token's issuer made up may hold anything."""
    return name if _SANE.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest()
