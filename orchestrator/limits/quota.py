"""What a key or a tenant may use, and what is left of it. Plain data; no I/O.

Money is counted in nano-dollars, as in `spending.money`. All counts stay below 2^53, which is as far as the scripts in Redis
count exactly: nine million dollars.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Budget(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be spent in a period. None: as much as one likes."""

    tokens: int | None = None
    nano: int | None = None


class Allowance(msgspec.Struct, frozen=True, omit_defaults=True):
    """The limits of a key, or of a tenant. None: there is no such limit. Days and months are those of UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    runs: int | None = None
    streams: int | None = None
    day: Budget | None = None
    month: Budget | None = None

    def over(self, defaults: Allowance) -> Allowance:
        """These limits, and where there is none the default."""
        return self._merged(defaults, lambda own, default: default if own is None else own)

    def within(self, most: Allowance) -> Allowance:
        """These limits, none of them higher than that of `most`."""
        return self._merged(most, lambda own, bound: own if own is None or bound is None else min(own, bound))

    def _merged(self, other: Allowance, pick: Callable[[int | None, int | None], int | None]) -> Allowance:
        return Allowance(
            requests_per_minute=pick(self.requests_per_minute, other.requests_per_minute),
            tokens_per_minute=pick(self.tokens_per_minute, other.tokens_per_minute),
            runs=pick(self.runs, other.runs),
            streams=pick(self.streams, other.streams),
            day=_merged(self.day, other.day, pick),
            month=_merged(self.month, other.month, pick),
        )


def _merged(one: Budget | None, other: Budget | None, pick: Callable[[int | None, int | None], int | None]) -> Budget | None:
    one, other = one or _ANY, other or _ANY
    merged = Budget(pick(one.tokens, other.tokens), pick(one.nano, other.nano))
    return None if merged == _ANY else merged


_ANY = Budget()
NO_LIMITS = Allowance()


class Rate(msgspec.Struct, frozen=True):
    """How a limit per minute stands: how many more are let through now, and after how long without any it is as good as new."""

    limit: int
    remaining: int
    reset_ms: int


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """What responses say of the limits per minute: of the key's and the tenant's the one that is nearer."""

    requests: Rate | None = None
    tokens: Rate | None = None


class Hold(msgspec.Struct, frozen=True, omit_defaults=True):
    """What limits hold for a run, kept with it. `places`: the sets that it leaves in the moment it ends.

    `reserved`: something was reserved for it, so it has to be settled. `output_tokens`: for how much of its answer; None if no
    budget concerns it. `prompt_tokens`: how long its prompt is, before agents add to it; 0 if nobody counted.
    """

    places: tuple[str, ...] = ()
    reserved: bool = False
    output_tokens: int | None = None
    prompt_tokens: int = 0
