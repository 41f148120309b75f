"""What follows when an upstream fails: the whole policy, as functions of what is known. No I/O, no clock, no chance of its own.

Before the first output the same upstream may be asked again, then those after it. Nothing that was said is ever taken back here;
an answer that breaks off is `after_cut`'s, and then its agent's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from orchestrator.upstreams.route import ErrorClass, Retry
from orchestrator.upstreams.upstream import (
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamResting,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
)


class Standing(msgspec.Struct, frozen=True):
    """One upstream of a call, as it stands: how often it was asked and may be, whether it is being asked now, and whether its
    circuit lets nobody through."""

    tries: int
    allowed: int
    asked: bool = False
    resting: bool = False

    @property
    def willing(self) -> bool:
        return self.tries < self.allowed and not self.resting and not self.asked


class Ask(msgspec.Struct, frozen=True):
    """Ask the upstream at `place`, after `delay_s`."""

    place: int
    delay_s: float = 0.0


class Wait(msgspec.Struct, frozen=True):
    """Another upstream is being asked; hear it out."""


class GiveUp(msgspec.Struct, frozen=True):
    """No other try can help, or none is left."""


Decision = Ask | Wait | GiveUp


def decide(
    error: UpstreamError,
    place: int,
    standings: Sequence[Standing],
    *,
    retry: Retry,
    chance: float,
    time_left_s: float = math.inf,
) -> Decision:
    """What to do after a try at `place` that failed before its first output and is counted in its standing.

    `chance` is a random number in [0, 1). Nobody is asked more often than allowed, so every call ends.
    """
    if is_final(error):
        return GiveUp()
    if any(standing.asked for standing in standings):
        return Wait()
    delay_s = _delay_s(error, standings[place].tries, retry, chance)
    if standings[place].willing and delay_s is not None and delay_s < time_left_s:
        return Ask(place, delay_s)
    following = upcoming(standings, place + 1)
    return GiveUp() if following is None else Ask(following)


def after_cut(error: UpstreamError, *, calls: int, attempts: int, retry: Retry, time_left_s: float) -> float | None:
    """How long to wait before the next call when an answer broke off and policy allows for more; None: it is over.

    `calls` of `attempts` were made. An upstream's own wish for patience is granted: who waits has half an answer already.
    """
    delay_s = error.retry_after_s or 0.0
    if is_final(error) or not error.retryable or calls >= attempts:
        return None
    return delay_s if delay_s <= retry.patience_s and delay_s < time_left_s else None


def upcoming(standings: Sequence[Standing], place: int = 0) -> int | None:
    """The first upstream from `place` on that may be asked."""
    return next((later for later in range(place, len(standings)) if standings[later].willing), None)


def _delay_s(error: UpstreamError, tries: int, retry: Retry, chance: float) -> float | None:
    """How long to wait before asking the same upstream again; None where that is no use."""
    if not error.retryable or class_of(error) not in (None, *retry.on):
        return None
    delay_s = min(retry.delay_s * retry.backoff ** (tries - 1), retry.max_delay_s) * (1 - retry.jitter * (1 - chance))
    if error.retry_after_s is None:
        return delay_s
    return None if error.retry_after_s > retry.patience_s else max(delay_s, error.retry_after_s)


def class_of(error: UpstreamError) -> ErrorClass | None:
    """What `route.retry.on` calls this failure; None for one that it does not speak of."""
    match error:
        case UpstreamUnreachable():
            return "unreachable"
        case UpstreamCut():
            return "cut"
        case UpstreamSilent():
            return "idle_timeout"
        case UpstreamGarbled():
            return "protocol"
        case UpstreamRejected(status=429):
            return "rate_limit"
        case UpstreamRejected(status=status) if status >= 500 or status in (408, 409):
            return "server_error"
    return None


def is_final(error: UpstreamError) -> bool:
    """The request itself is refused, or its time is over: every upstream would say the same."""
    if isinstance(error, UpstreamTooSlow):
        return True
    return isinstance(error, UpstreamRejected) and 400 <= error.status < 500 and error.status not in (404, 408, 409, 429)


def most_telling(errors: Sequence[UpstreamError]) -> UpstreamError:
    """The error to end with when all upstreams failed: one that tells the client what to do, else the last."""
    return max(enumerate(errors), key=lambda item: (_rank(item[1]), item[0]))[1]


def _rank(error: UpstreamError) -> int:
    if is_final(error):
        return 3
    if error.retry_after_s is not None or error.status == 429:
        return 2
    return 1 if isinstance(error, UpstreamRejected | UpstreamResting) else 0
