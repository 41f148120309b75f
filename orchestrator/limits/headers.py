"""A quota as response headers, by the names and in the formats of OpenAI's API. No I/O.

    x-ratelimit-limit-requests: 60        how many a minute
    x-ratelimit-remaining-requests: 59    how many more now
    x-ratelimit-reset-requests: 1s        until as many as a minute's are let through again: 12ms, 1s, 6m0s

The same with `-tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.limits.quota import Quota


def rate_limit_headers(quota: Quota | None) -> Iterator[tuple[str, str]]:
    for name in ("requests", "tokens"):
        if quota is not None and (rate := getattr(quota, name)) is not None:
            yield f"x-ratelimit-limit-{name}", str(rate.limit)
            yield f"x-ratelimit-remaining-{name}", str(rate.remaining)
            yield f"x-ratelimit-reset-{name}", duration(rate.reset_ms)


def duration(ms: int) -> str:
    """`0s`, `12ms`, `1.5s`, `6m0s`, `1h0m0s`: what Go's durations look like, whole milliseconds at most."""
    if 0 < ms < 1000:
        return f"{ms}ms"
    seconds = f"{ms % 60_000 / 1000:g}s"
    minutes = ms // 60_000
    if minutes >= 60:
        return f"{minutes // 60}h{minutes % 60}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
