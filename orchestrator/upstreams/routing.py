"""Which upstream answers a call: tries in order, with patience, until the first output. After that nothing is tried again here.

`decide` is the whole policy and has no I/O; `Router` carries it out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

import msgspec

from orchestrator.upstreams.balance import Names, ordered
from orchestrator.upstreams.upstream import (
    Call,
    Delta,
    Finish,
    Note,
    Piece,
    Upstream,
    UpstreamError,
    UpstreamRejected,
    UpstreamTooSlow,
)

FIRST_DELAY_S = 0.25
LONGEST_DELAY_S = 8.0
LONGEST_RETRY_AFTER_S = 10.0
"""An upstream that asks for more patience than this is passed over; its own figure goes to the client if no other answers."""


class Again(msgspec.Struct, frozen=True):
    """Ask the same upstream once more, after `delay_s`."""

    delay_s: float


class Onward(msgspec.Struct, frozen=True):
    """Ask the next upstream, at once."""


class GiveUp(msgspec.Struct, frozen=True):
    """No other try can help, or none is left."""


Decision = Again | Onward | GiveUp


def decide(
    error: UpstreamError, *, tries: int, retries: int, others: bool, chance: float, time_left_s: float | None = None
) -> Decision:
    """What to do after a try that failed before its first output.

    `tries` counts those of this upstream, the failed one included; `retries` is how many more than one it may have; `others`
    says whether another upstream follows; `chance` is a random number in [0, 1).
    """
    if _is_final(error):
        return GiveUp()
    elsewhere: Decision = Onward() if others else GiveUp()
    if not error.retryable or tries > retries:
        return elsewhere
    delay_s = min(FIRST_DELAY_S * 2 ** (tries - 1), LONGEST_DELAY_S) * (0.5 + chance / 2)
    if error.retry_after_s is not None:
        if error.retry_after_s > LONGEST_RETRY_AFTER_S:
            return elsewhere
        delay_s = max(delay_s, error.retry_after_s)
    if time_left_s is not None and delay_s >= time_left_s:
        return elsewhere
    return Again(delay_s)


def most_telling(errors: Sequence[UpstreamError]) -> UpstreamError:
    """The error to end with when all upstreams failed: one that tells the client what to do, else the last."""
    return max(enumerate(errors), key=lambda item: (_rank(item[1]), item[0]))[1]


def _is_final(error: UpstreamError) -> bool:
    """The request itself is refused, or its time is over: every upstream would say the same."""
    if isinstance(error, UpstreamTooSlow):
        return True
    return isinstance(error, UpstreamRejected) and 400 <= error.status < 500 and error.status not in (404, 408, 409, 429)


def _rank(error: UpstreamError) -> int:
    if _is_final(error):
        return 3
    if error.retry_after_s is not None or error.status == 429:
        return 2
    return 1 if isinstance(error, UpstreamRejected) else 0


class FailedTry(msgspec.Struct, frozen=True):
    """A try that failed before its first output. `next_upstream` is asked after `delay_s`; None: this was the last try.

    `attempt` counts all tries of the call, from 1.
    """

    upstream: str
    attempt: int
    error: UpstreamError
    delay_s: float
    next_upstream: str | None


class Answer:
    """An answer that has begun: who gives it, after how many tries, and its pieces from the first one on."""

    def __init__(self, upstream: str, attempt: int, first: Sequence[Piece], rest: AsyncGenerator[Sequence[Piece], None]) -> None:
        self.upstream = upstream
        self.attempt = attempt
        self._first = first
        self._rest = rest

    async def __aiter__(self) -> AsyncGenerator[Sequence[Piece], None]:
        yield self._first
        async for pieces in self._rest:
            yield pieces


OnFailure = Callable[[FailedTry], Awaitable[None]]


class Router:
    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        retries: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`retries` names how many more tries each upstream may have; one that is not named has none."""
        self._upstreams = upstreams
        self._retries = retries or {}
        self._clock = clock
        self._chance = chance
        self._sleep = sleep

    def continues(self, names: Names) -> bool:
        """Whether every one of these upstreams can go on from a prefix."""
        return all(self._upstreams[name].continues for name in names)

    @asynccontextmanager
    async def ask(self, names: Names, call: Call, on_failure: OnFailure | None = None) -> AsyncIterator[Answer]:
        """The answer of the first upstream that begins one. Leaving the block closes its socket.

        Raises the most telling UpstreamError when none does, and, while the answer is read, whatever breaks it off.
        A prefix is only given to upstreams that can continue; to the others the call goes without, and they begin anew.
        """
        errors: list[UpstreamError] = []
        names = ordered(names, self._chance)
        place = tries = 0
        while True:
            name = names[place]
            upstream = self._upstreams[name]
            tries += 1
            async with aclosing(upstream.stream(_for(upstream, call))) as pieces:
                try:
                    first = await _first_output(pieces)
                except UpstreamError as error:
                    errors.append(error)
                else:
                    yield Answer(name, len(errors) + 1, first, pieces)
                    return
            decision = decide(
                errors[-1],
                tries=tries,
                retries=self._retries.get(name, 0),
                others=place + 1 < len(names),
                chance=self._chance(),
                time_left_s=None if call.deadline_ms is None else call.deadline_ms / 1000 - self._clock(),
            )
            delay_s = decision.delay_s if isinstance(decision, Again) else 0.0
            if isinstance(decision, Onward):
                place, tries = place + 1, 0
            if on_failure is not None:
                following = None if isinstance(decision, GiveUp) else names[place]
                await on_failure(FailedTry(name, len(errors), errors[-1], delay_s, following))
            if isinstance(decision, GiveUp):
                raise most_telling(errors)
            await self._sleep(delay_s)


def _for(upstream: Upstream, call: Call) -> Call:
    return call if upstream.continues or not call.prefix else msgspec.structs.replace(call, prefix="")


async def _first_output(pieces: AsyncGenerator[Sequence[Piece], None]) -> Sequence[Piece]:
    """All pieces up to the first batch with output in it. An answer without any ends with what it has."""
    waiting: list[Piece] = []
    async for batch in pieces:
        waiting.extend(batch)
        if any(isinstance(piece, Delta | Finish) for piece in batch):
            return waiting
    return waiting or [Note("empty_answer")]
