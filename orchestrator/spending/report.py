"""What is asked about usage, and what is answered. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Literal

import msgspec

Grouping = Literal["key", "model", "day"]

MOST_ROWS = 10_000


class UsageRow(msgspec.Struct, frozen=True):
    """A sum over runs that have ended. What it is not grouped by is None. `cost_nano`: nano-dollars; None: no price is known."""

    key_id: str | None = None
    model: str | None = None
    day: date | None = None
    runs: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost_nano: int | None = None

    def plus(self, other: UsageRow) -> UsageRow:
        """Both together, of whatever key, model and day."""
        costs = [cost for cost in (self.cost_nano, other.cost_nano) if cost is not None]
        return UsageRow(
            runs=self.runs + other.runs,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cost_nano=sum(costs) if costs else None,
        )


class UsageQuery(msgspec.Struct, frozen=True):
    """From one day to another, both included, in UTC; a run counts on the day on which it was created."""

    first: date
    last: date
    by: Sequence[Grouping] = ()


class UsageReport(msgspec.Struct, frozen=True):
    """`as_of_ms`: what ended until then is in it. `truncated`: there are more rows than a report may have."""

    rows: Sequence[UsageRow]
    as_of_ms: int
    truncated: bool = False
