"""How an agent's calls find their upstream, as the configuration says it: in which order, how patiently, and when two at once.

Validation only; `routing.py` acts on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    Tag,
    ValidationInfo,
    model_validator,
)

ErrorClass = Literal["unreachable", "rate_limit", "server_error", "cut", "idle_timeout", "protocol"]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _chosen(weights: dict[str, float]) -> dict[str, float]:
    if not any(weights.values()):
        raise ValueError("needs at least one upstream with a weight above 0")
    return weights


Weight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]

Upstreams = Annotated[
    Annotated[tuple[str, ...], Field(min_length=1), Tag("in order")]
    | Annotated[dict[str, Weight], AfterValidator(_chosen), Tag("by weight")],
    Discriminator(lambda value: "by weight" if isinstance(value, Mapping) else "in order"),
    BeforeValidator(_listed),
]
"""Names in order, or names with weights; iterating gives the names either way. Tags have a space, which no name in a path has."""


class RouteModel(BaseModel):
    """What the models here share: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Retry(RouteModel):
    """How patiently one upstream is asked again, as long as nothing has been said."""

    attempts: Annotated[int, Field(ge=1, le=20)] | None = Field(
        default=None, description="How often each upstream is asked, the first time included. None: as its own `retries` say."
    )
    delay_s: NonNegativeFloat = Field(default=0.25, description="Before the second time.")
    backoff: Annotated[float, Field(ge=1, le=10)] = Field(default=2.0, description="Each further delay is so many times longer.")
    max_delay_s: NonNegativeFloat = Field(default=8.0, description="But never longer than this.")
    jitter: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="The share of a delay that is left to chance, so that those who failed together do not come back so.",
    )
    patience_s: NonNegativeFloat = Field(
        default=10.0,
        description="An upstream that asks for more (`Retry-After`) is passed over; if no other answers, the client is told.",
    )
    on: tuple[ErrorClass, ...] = Field(
        default=("unreachable", "rate_limit", "server_error", "cut", "idle_timeout", "protocol"),
        description="The failures after which the same upstream is asked again; after others, the next one is.",
    )


class Hedge(RouteModel):
    """Ask a second upstream when the first is silent for longer than usual, and take whichever speaks first."""

    after_s: PositiveFloat | None = Field(default=None, description="How long the first may be silent.")
    after_percentile: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        default=None, description="Or: longer than so many in a hundred of its latest answers took; 95 if neither is said."
    )
    floor_s: PositiveFloat = Field(default=0.2, description="A percentile is never taken for less than this.")
    max_share: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="The share of calls that may be asked twice.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.after_s is not None and self.after_percentile is not None:
            raise ValueError("takes either after_s or after_percentile")
        return self


class Route(RouteModel):
    """Beside an agent's `upstream`, which says who is asked, this says how."""

    retry: Retry = Retry()
    hedge: Hedge | None = Field(default=None, description="None: one upstream at a time.")


def _hedgeable(route: Route, info: ValidationInfo) -> Route:
    if route.hedge is not None and len(set(info.data.get("upstream", "ab"))) < 2:
        raise ValueError("hedge needs a second upstream")
    return route


AgentRoute = Annotated[Route, AfterValidator(_hedgeable)]
"""The route of an agent, whose `upstream` comes before it."""
