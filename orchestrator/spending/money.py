"""Money, exactly: prices are whole nano-dollars per token and costs whole nano-dollars, so sums are what they say. No I/O.

Providers quote dollars per million tokens, of which a thousandth is a nano-dollar per token. No float is ever added up; one is
made only where an answer has to say dollars as a number.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from orchestrator.upstreams.upstream import Usage

NANO = 1_000_000_000
"""Nano-dollars in a dollar."""


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token of a model costs, in nano-dollars. `cached_input` None: the upstream's cache saves nothing."""

    input: int
    output: int
    cached_input: int | None = None

    def cost(self, usage: Usage) -> int:
        """In nano-dollars. Cached tokens are some of the prompt's, and reasoning is some of the completion."""
        cached = 0 if self.cached_input is None else min(usage.cached or 0, usage.prompt_tokens)
        return (
            (usage.prompt_tokens - cached) * self.input
            + cached * (self.cached_input or 0)
            + usage.completion_tokens * self.output
        )

    @property
    def dearest(self) -> int:
        """What no token of this model costs more than."""
        return max(self.input, self.output, self.cached_input or 0)


def cost(price: Price | None, usage: Usage | None) -> int | None:
    """In nano-dollars; None where the price or the usage is not known."""
    return None if price is None or usage is None else price.cost(usage)


def per_token(usd_per_million: Decimal) -> int:
    """Dollars per million tokens as nano-dollars per token. Raises ValueError for a fraction of one."""
    nano = usd_per_million * 1000
    if nano != nano.to_integral_value():
        raise ValueError("should have three decimals at most: the smallest price is 0.001 dollars per million tokens")
    return int(nano)


def nano_usd(usd: Decimal) -> int:
    """Dollars as nano-dollars. Raises ValueError for a fraction of one."""
    nano = usd * NANO
    if nano != nano.to_integral_value():
        raise ValueError("should have nine decimals at most")
    return int(nano)


def usd(nano: int) -> float:
    """For answers that say dollars as a number: the nearest double."""
    return nano / NANO
