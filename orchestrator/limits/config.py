"""What the configuration says of limits: of one key or tenant, of all of them, and of what holds while they cannot be checked."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, StringConstraints

from orchestrator.limits.quota import Allowance, Budget
from orchestrator.limits.terms import Policy
from orchestrator.spending.money import NANO, nano_usd


def _whole(value: Decimal) -> Decimal:
    nano_usd(value)
    return value


Usd = Annotated[Decimal, Field(gt=0, le=1_000_000), AfterValidator(_whole)]
Count = Annotated[int, Field(gt=0, le=10**12)]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpendingBudget(_Section):
    """What may be spent in a period. A request that would go beyond it is refused, a run that would is ended."""

    tokens: Count | None = Field(default=None, description="Tokens of prompts and answers.")
    usd: Usd | None = Field(default=None, description="US dollars, by the prices of the models.")

    @classmethod
    def of(cls, budget: Budget | None) -> Self | None:
        if budget is None:
            return None
        return cls(tokens=budget.tokens, usd=None if budget.nano is None else Decimal(budget.nano) / NANO)

    def budget(self) -> Budget:
        return Budget(self.tokens, None if self.usd is None else nano_usd(self.usd))


class Budgets(_Section):
    """Days and months of UTC. A run belongs to those in which it began."""

    day: SpendingBudget | None = None
    month: SpendingBudget | None = None


class LimitsOf(_Section):
    """The limits of one key or one tenant. What is not said is not limited."""

    requests_per_minute: Count | None = Field(
        default=None, description="A minute's worth may come at once; then they come at an even rate."
    )
    tokens_per_minute: Count | None = Field(
        default=None,
        description="Tokens of prompts and answers: estimated when a request comes, corrected when its run has ended.",
    )
    runs: PositiveInt | None = Field(default=None, description="Runs that may go on at a time.")
    streams: PositiveInt | None = Field(
        default=None, description="Streams that may be read at a time, besides the answers to requests that began runs."
    )
    budgets: Budgets = Budgets()

    @classmethod
    def of(cls, allowance: Allowance | None) -> Self | None:
        """The same in these words."""
        if allowance is None:
            return None
        return cls(
            requests_per_minute=allowance.requests_per_minute,
            tokens_per_minute=allowance.tokens_per_minute,
            runs=allowance.runs,
            streams=allowance.streams,
            budgets=Budgets(day=SpendingBudget.of(allowance.day), month=SpendingBudget.of(allowance.month)),
        )

    def allowance(self) -> Allowance:
        day, month = self.budgets.day, self.budgets.month
        return Allowance(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            runs=self.runs,
            streams=self.streams,
            day=None if day is None else day.budget(),
            month=None if month is None else month.budget(),
        )


class Limits(_Section):
    """Limits and budgets. They hold across all replicas."""

    when_unavailable: Literal["open", "closed"] = Field(
        default="closed",
        description="While they cannot be checked, requests that are subject to limits are refused (closed), or let in (open).",
    )
    key: LimitsOf = Field(default=LimitsOf(), description="Every key, except where it has limits of its own.")
    tenant: LimitsOf = Field(default=LimitsOf(), description="Every tenant, all its keys together.")
    tenants: dict[Tenant, LimitsOf] = Field(default={}, description="Single tenants: what is said here replaces `tenant`.")

    def policy(self) -> Policy:
        return Policy(
            key=self.key.allowance(),
            tenant=self.tenant.allowance(),
            tenants={name: limits.allowance() for name, limits in self.tenants.items()},
            when_unavailable=self.when_unavailable,
        )
