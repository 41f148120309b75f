"""What the configuration says of money and of how much a run may use."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from orchestrator.spending.money import Price, per_token


def _whole(value: Decimal) -> Decimal:
    per_token(value)
    return value


UsdPerMillion = Annotated[Decimal, Field(ge=0, le=10_000), AfterValidator(_whole)]


class ModelPrice(BaseModel):
    """What a model costs, in US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: UsdPerMillion = Field(description="Tokens of the prompt.")
    output: UsdPerMillion = Field(description="Tokens of the answer, reasoning included.")
    cached_input: UsdPerMillion | None = Field(
        default=None, description="Tokens of the prompt that the upstream had in its cache. None: as `input`."
    )

    def price(self) -> Price:
        cached = None if self.cached_input is None else per_token(self.cached_input)
        return Price(per_token(self.input), per_token(self.output), cached)


class RunBudget(BaseModel):
    """What one run may use, all its agents together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: PositiveInt = Field(description="Tokens of prompts and answers. A run that has used them up stops, with what it has.")
