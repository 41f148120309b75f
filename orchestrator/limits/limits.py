"""What the engine asks of limits and budgets.

**Admission is one atomic step**, for all limits that concern a request, its key's and its tenant's: all of them take it, or none
does. What it may use is reserved then, more is reserved while it is being answered, and settled once when it has ended. A period
is that in which its run was created. What a budget gave out, used or only reserved, never exceeds it.

A run gives back its place among the concurrent ones in the very step that ends its log. Whatever a process held that died comes
back by itself: places after `LAPSE_S` without renewal, reservations of runs that nobody settles after `RESERVED_S`.

Where no limit is configured for a caller, nothing is asked of anybody.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

import msgspec

from orchestrator.limits.quota import Hold, Quota
from orchestrator.runs import Principal, Run
from orchestrator.spending.money import Price

LAPSE_S = 28.0
"""Thirty seconds after a crash whoever waits for a place has it."""
RESERVED_S = 3600.0


class Estimate(msgspec.Struct, frozen=True):
    """What a call of a model will use: its prompt, and of the answer what is to be reserved now."""

    prompt_tokens: int
    output_tokens: int
    price: Price | None = None


class Used(msgspec.Struct, frozen=True):
    """What a run has used in the end."""

    tokens: int = 0
    nano: int = 0


class Admitted(msgspec.Struct, frozen=True):
    """`hold` has to be kept with the run; None: there is nothing to give back and nothing to settle."""

    quota: Quota | None = None
    hold: Hold | None = None


ADMITTED = Admitted()


class Limits(Protocol):
    """Where the counts cannot be had in time, `admit`, `extend` and `reading` raise LimitsUnavailable, or do as if there were no
    limits, whatever the configuration says.
    """

    @property
    def unlimited(self) -> bool:
        """Nothing is ever held for anybody, so there is nothing to renew."""

    def counts_tokens(self, principal: Principal) -> bool:
        """Whether `admit` wants an estimate for this caller's runs."""

    async def admit(
        self, principal: Principal, run_id: str, created_ms: int, estimate: Estimate | None, *, may_repeat: bool = False
    ) -> Admitted:
        """Let a run begin. Raises RateLimited, BudgetExceeded.

        Where a budget has room for the prompt and some of the answer only, that much of it is reserved: `Hold.output_tokens`.
        `may_repeat`: others may admit the same run, by its id, at the same time; that is then one admission.
        """

    async def extend(self, run: Run, want: Estimate) -> int:
        """Reserve more for a run that goes on: the prompt of a further call, and up to so much of an answer.

        Returns for how much of the answer. 0: a budget is spent, and nothing was reserved. To be asked now and then, not for
        every chunk.
        """

    async def settle(self, run: Run, used: Used) -> None:
        """What the run has used takes the place of what was reserved for it. Only the first time; later ones have no effect.

        Raises Unavailable: then it has to be done again.
        """

    def cancel(self, run: Run) -> None:
        """The run never began: nothing was used, and its places are free."""

    def reading(self, principal: Principal) -> AbstractAsyncContextManager[None]:
        """Around a stream that is being read. Raises TooManyStreams on entry."""

    async def renew(self, runs: Iterable[Run]) -> None:
        """These runs go on: what they hold does not lapse. Raises Unavailable."""


class Unlimited:
    """`Limits` without any."""

    unlimited = True

    def counts_tokens(self, principal: Principal) -> bool:
        return False

    async def admit(
        self, principal: Principal, run_id: str, created_ms: int, estimate: Estimate | None, *, may_repeat: bool = False
    ) -> Admitted:
        return ADMITTED

    async def extend(self, run: Run, want: Estimate) -> int:
        return want.output_tokens

    async def settle(self, run: Run, used: Used) -> None: ...

    def cancel(self, run: Run) -> None: ...

    def reading(self, principal: Principal) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def renew(self, runs: Iterable[Run]) -> None: ...
