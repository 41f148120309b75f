"""Progress: how far a run is, counted. The object of `PROGRESS` events, and the arithmetic of its fraction. No I/O.

A run is one whole. A sequence shares it out among its steps, a parallel step among its branches; a condition hands all of it to
the branch that is taken, and a retry keeps it until its step has succeeded. What has finished is added up, so the fraction never
falls, whatever finishes first. It is exact until it is written down.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Literal

import msgspec

from orchestrator.plans.steps import Kind

Status = Literal["started", "completed", "failed", "cancelled"]


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a step stands: the top-level step that it belongs to, the branch of a parallel step, the attempt of a retry."""

    step_index: int = 0
    parallel_index: int | None = None
    parallel_total: int | None = None
    attempt: int | None = None


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one `PROGRESS` event says. `branch` is the side that a condition took: then, else or none.

    `cause` is the step whose failure a failed step passes on: its words are in the log, and whoever tells this puts them here.
    """

    step_name: str
    step_index: int = msgspec.field(default=0)
    step_type: Kind | Literal[""] = ""
    status: Status = "started"
    progress: float = 0.0
    message: str | None = None
    error: str | None = None
    cause: str | None = None
    parallel_index: int | None = None
    parallel_total: int | None = None
    attempt: int | None = None
    branch: str | None = None

    def payload(self) -> dict[str, Any]:
        """All of it, with what does not apply left out."""
        facts = msgspec.structs.asdict(self)
        del facts["cause"]
        return {key: value for key, value in facts.items() if value is not None}


class Tally:
    """What has finished of the whole."""

    def __init__(self, finished: Fraction = Fraction(0)) -> None:
        self.finished = finished


class Share:
    """A step's part of the whole. `held`: it counts for nothing until a step above it has succeeded."""

    def __init__(self, tally: Tally, weight: Fraction, *, above: Share | None = None, held: bool = False) -> None:
        self.weight = weight
        self._tally = tally
        self._above = above
        self._held = held
        self._filled = Fraction(0)

    @property
    def total(self) -> float:
        """What has finished of the whole, at most 1."""
        return float(self._tally.finished)

    @property
    def finished(self) -> Fraction:
        """What has finished of the whole, exactly."""
        return self._tally.finished

    @classmethod
    def whole(cls, tally: Tally | None = None) -> Share:
        return cls(tally or Tally(), Fraction(1))

    def part(self, count: int = 1, *, held: bool = False) -> Share:
        """That of one of so many steps in it."""
        return Share(self._tally, self.weight / count, above=self, held=held or self._held)

    def finish(self) -> None:
        """What is not counted of it yet is counted now."""
        if not self._held:
            self._fill(self.weight - self._filled, tally=True)

    def _fill(self, amount: Fraction, *, tally: bool) -> None:
        self._filled += amount
        if tally:
            self._tally.finished += amount
        if self._above is not None:
            self._above._fill(amount, tally=False)
