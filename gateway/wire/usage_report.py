"""`GET /api/v1/usage`: what it is asked, and what it answers. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from functools import reduce
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from gateway.wire.rest_models import Answer
from orchestrator.errors import InvalidRequest
from orchestrator.events import timestamp
from orchestrator.spending.money import usd
from orchestrator.spending.report import Grouping, UsageQuery, UsageReport, UsageRow

MOST_DAYS = 366


def _listed(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


_GROUPS = "^ *((key|model|day)? *, *)*(key|model|day)? *$"

GroupBy = Annotated[
    tuple[Grouping, ...],
    BeforeValidator(_listed),
    WithJsonSchema({"type": "string", "pattern": _GROUPS, "examples": ["day,model", "key"]}),
]


class AskedUsage(BaseModel):
    first: date | None = Field(default=None, alias="from", description="The first day, in UTC. Without it: that of its month.")
    last: date | None = Field(default=None, alias="to", description="The last day, in UTC. Without it: today.")
    group_by: GroupBy = Field(default=(), description="`key`, `model`, `day`, separated by commas. Without it: one sum.")

    def query(self, today: date) -> UsageQuery:
        """Raises InvalidRequest."""
        last = self.last or today
        first = self.first or last.replace(day=1)
        if not timedelta() <= last - first < timedelta(days=MOST_DAYS):
            raise InvalidRequest(f"'from' is not after 'to', and {MOST_DAYS} days are asked for at most.", param="from")
        return UsageQuery(first, last, self.group_by)


class UsageSum(Answer):
    """A sum over tasks that have ended. Costs are null where no price is known; `cost_nano_usd` is exact."""

    runs: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = Field(description="Of the prompts' tokens, those that an upstream had in its cache.")
    cost_usd: float | None
    cost_nano_usd: int | None


class UsageGroup(UsageSum):
    """What it was not grouped by is null."""

    key_id: str | None = Field(description="The key's id, or its name in the configuration.")
    model: str | None
    day: str | None = Field(examples=["2026-11-20"])


class UsageAnswer(Answer):
    """What was used. A task counts on the day on which it was begun, once it has ended and was archived."""

    first: str = Field(alias="from", examples=["2026-11-01"])
    last: str = Field(alias="to", examples=["2026-11-20"])
    as_of: str = Field(description="Every task that had ended by then is in it.")
    groups: Sequence[UsageGroup] = Field(description="By day, then key, then model. Empty without `group_by`.")
    total: UsageSum


def usage_answer(query: UsageQuery, report: UsageReport) -> UsageAnswer:
    """Raises InvalidRequest for what is too long to be answered."""
    if report.truncated:
        raise InvalidRequest("There are too many groups. Ask for fewer days, or group by less.", param="group_by")
    return UsageAnswer(
        **{"from": query.first.isoformat(), "to": query.last.isoformat()},
        as_of=timestamp(report.as_of_ms),
        groups=[_group(row) for row in report.rows] if query.by else [],
        total=UsageSum(**_sum(reduce(UsageRow.plus, report.rows, UsageRow()))),
    )


def _group(row: UsageRow) -> UsageGroup:
    day = None if row.day is None else row.day.isoformat()
    return UsageGroup(**_sum(row), key_id=row.key_id, model=row.model, day=day)


def _sum(row: UsageRow) -> dict[str, Any]:
    return {
        "runs": row.runs,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
        "cached_tokens": row.cached_tokens,
        "cost_usd": None if row.cost_nano is None else usd(row.cost_nano),
        "cost_nano_usd": row.cost_nano,
    }
