"""What a caller is told whom a limit refuses: which one it is, and when to come back. In the words of OpenAI's API. No I/O."""

from __future__ import annotations

from orchestrator.errors import BudgetExceeded, RateLimited, TooManyStreams
from orchestrator.limits.headers import duration
from orchestrator.limits.quota import Quota
from orchestrator.limits.terms import Allotment, Limit
from orchestrator.spending.money import usd

_ALMOST_S = 1.0
"""When to come back for a place that another has, of which nobody knows when it leaves."""

_PER_MINUTE = {"requests": "requests per minute (RPM)", "tokens": "tokens per minute (TPM)"}


def too_fast(limit: Limit, wait_ms: int, quota: Quota | None) -> RateLimited:
    """`wait_ms` < 0: it will never fit."""
    of = f"{_PER_MINUTE[limit.kind]} of this {limit.whose}: limit {limit.limit}."
    if wait_ms < 0:
        error = RateLimited(f"The request is too large for the {of}")
        error.retryable = False
    else:
        error = RateLimited(f"Rate limit reached for the {of} Please try again in {duration(wait_ms)}.")
        error.retry_after_s = wait_ms / 1000
    error.type, error.quota = limit.kind, quota
    return error


def too_many_runs(limit: Limit, quota: Quota | None) -> RateLimited:
    error = RateLimited(
        f"As many runs of this {limit.whose} are going on as may at a time: {limit.limit}. Please try again when one has ended.",
        retry_after_s=_ALMOST_S,
    )
    error.type, error.quota = limit.kind, quota
    return error


def too_many_streams(limit: Limit) -> TooManyStreams:
    return TooManyStreams(
        f"As many streams of this {limit.whose} are being read as may at a time: {limit.limit}. Please close one.",
        retry_after_s=_ALMOST_S,
    )


def spent(spending: Allotment) -> BudgetExceeded:
    tokens, nano = spending.budget.tokens, spending.budget.nano
    amounts = ([] if tokens is None else [f"{tokens} tokens"]) + ([] if nano is None else [f"{usd(nano):g} dollars"])
    return BudgetExceeded(
        f"You exceeded your current quota: this {spending.whose}'s budget for the {spending.period} (UTC), "
        f"{' and '.join(amounts)}, has no room for this request."
    )
