"""When a second upstream is asked beside a silent first one, and how often at most. No I/O, no clock of its own."""

from __future__ import annotations

import math
from collections import deque

from orchestrator.upstreams.route import Hedge

KEPT = 100
ENOUGH = 20
"""What fewer answers took says nothing about what is usual."""

USUAL_PERCENTILE = 95.0
_ONE = 1_000_000
_MOST_SAVED = 10 * _ONE
"""Ten calls may be hedged in a row after a quiet time."""


class FirstTokens:
    """How long the latest answers of one upstream took to begin."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Also for a try that was given up in favour of another: it would have taken at least so long."""
        self._seconds.append(seconds)

    def percentile(self, share: float) -> float | None:
        """So many in a hundred took no longer than this. None as long as too few are known."""
        if len(self._seconds) < ENOUGH:
            return None
        return sorted(self._seconds)[math.ceil(len(self._seconds) * share / 100) - 1]


class Allowance:
    """How many calls may be asked twice: a share of all, counted in millionths so that ten tenths are one."""

    def __init__(self) -> None:
        self._saved = 0

    def earn(self, share: float) -> None:
        self._saved = min(_MOST_SAVED, self._saved + round(share * _ONE))

    def spend(self) -> bool:
        """Whether one more may be."""
        if self._saved < _ONE:
            return False
        self._saved -= _ONE
        return True


def hedge_after(hedge: Hedge, usual: FirstTokens) -> float | None:
    """How long the first upstream may be silent before a second one is asked. None: for as long as it likes."""
    if hedge.after_s is not None:
        return hedge.after_s
    seconds = usual.percentile(hedge.after_percentile or USUAL_PERCENTILE)
    return None if seconds is None else max(seconds, hedge.floor_s)
