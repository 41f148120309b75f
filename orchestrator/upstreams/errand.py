"""One call on its way to the upstream that answers it: carries out what `decision.py` decides.

It ends with exactly one attempt that has spoken, or with an error; whatever else it started is closed by then, however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import msgspec

from orchestrator.metrics import HedgeOutcome, Metrics
from orchestrator.upstreams.attempt import Attempt, Peer
from orchestrator.upstreams.decision import Ask, Decision, Standing, Wait, decide, most_telling, upcoming
from orchestrator.upstreams.hedge import hedge_after
from orchestrator.upstreams.route import Route
from orchestrator.upstreams.upstream import Call, UpstreamError, UpstreamResting


class FailedTry(msgspec.Struct, frozen=True):
    """A try that failed before its first output. `next_upstream` is asked after `delay_s`, or being asked already; None: this
    was the last try.

    `attempt` counts the failed tries of the call, from 1.
    """

    upstream: str
    attempt: int
    error: UpstreamError
    delay_s: float
    next_upstream: str | None


class Hedged(msgspec.Struct, frozen=True):
    """`second` is asked as well, because `first` has been silent for too long."""

    first: str
    second: str


Tell = Callable[[FailedTry | Hedged], Awaitable[None]]


async def tell_nobody(_: FailedTry | Hedged) -> None:
    """For callers who only want the answer."""


class Surroundings(msgspec.Struct, frozen=True):
    """What all calls of a process share. `clock` tells the time of deadlines, `monotonic` how long something took."""

    peers: Mapping[str, Peer]
    metrics: Metrics
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    chance: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


class Errand:
    """`begun` once. Then `errors` are those of the tries that failed; `hedged` and `lost` are as an `Answer` says them."""

    def __init__(self, around: Surroundings, names: Sequence[str], call: Call, tell: Tell, route: Route, until_s: float) -> None:
        self.errors: list[UpstreamError] = []
        self.hedged = False
        self.lost: str | None = None
        self._around = around
        self._peers = [around.peers[name] for name in names]
        self._tries = [0] * len(names)
        self._call = call
        self._tell = tell
        self._route = route
        self._until_s = until_s if call.deadline_ms is None else min(until_s, call.deadline_ms / 1000)

    async def begun(self) -> Attempt:
        """The attempt that spoke first. Raises the most telling UpstreamError when none does."""
        if self._route.hedge is not None:
            self._peers[0].allowance.earn(self._route.hedge.max_share)
        place = upcoming(self._standings())
        while place is not None:
            attempt = self._enter(place)
            if attempt is None:  # its circuit has opened since
                place = upcoming(self._standings(), place)
                continue
            after_s = self._hedge_after(place)
            heard = await (self._alone(attempt) if after_s is None else self._race(attempt, after_s))
            if isinstance(heard, Attempt):
                return heard
            place = heard.place if isinstance(heard, Ask) else None
            if isinstance(heard, Ask) and heard.delay_s:
                await self._around.sleep(heard.delay_s)
        raise most_telling(self.errors or [self._resting()])

    def passed_over(self, place: int) -> list[str]:
        """Who comes before `place` and was not asked."""
        return [peer.name for peer, tries in zip(self._peers[:place], self._tries, strict=False) if not tries]

    async def _alone(self, attempt: Attempt) -> Attempt | Decision:
        try:
            await attempt.begin()
        except UpstreamError as error:
            return await self._failed(attempt, error, ())
        return attempt

    async def _race(self, first: Attempt, after_s: float) -> Attempt | Decision:
        """Two at once, if the first has neither spoken nor failed after so long."""
        running = {asyncio.create_task(first.begin()): first}
        winner: Attempt | None = None
        try:
            done, _ = await asyncio.wait(running, timeout=after_s)
            if not done and (second := self._second(first)) is not None:
                running[asyncio.create_task(second.begin())] = second
                await self._tell(Hedged(first.upstream, second.upstream))
            while True:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task in done]:
                    error = task.exception()
                    if error is None:
                        winner = running[task]
                        return winner
                    attempt = running.pop(task)
                    if not isinstance(error, UpstreamError):
                        raise error
                    decision = await self._failed(attempt, error, running.values())
                    if not isinstance(decision, Wait):
                        return decision
        finally:
            if self.hedged:
                outcome: HedgeOutcome = "failed" if winner is None else "lost" if winner is first else "won"
                self._around.metrics.hedge(first.upstream, outcome)
            await self._close(running, winner)

    async def _close(self, running: Mapping[asyncio.Task[None], Attempt], winner: Attempt | None) -> None:
        """Close the sockets of all but the winner, at once; the winner's too if nobody waits for it any more."""
        losers = {task: attempt for task, attempt in running.items() if attempt is not winner}
        for task in losers:
            task.cancel()
        try:
            ends = await asyncio.gather(*losers, return_exceptions=True)
        except asyncio.CancelledError:
            for attempt in running.values():
                await attempt.close()
            raise
        for attempt, end in zip(losers.values(), ends, strict=True):
            await attempt.close()
            if winner is not None and not isinstance(end, UpstreamError):
                attempt.observe()
                self.lost = attempt.upstream

    async def _failed(self, attempt: Attempt, error: UpstreamError, others: Collection[Attempt]) -> Decision:
        """Decide what follows, and tell."""
        self.errors.append(error)
        decision = decide(
            error,
            attempt.place,
            self._standings({other.place for other in others}),
            retry=self._route.retry,
            chance=self._around.chance(),
            time_left_s=self._until_s - self._around.clock(),
        )
        following = None
        if isinstance(decision, Ask):
            following = self._peers[decision.place].name
        elif isinstance(decision, Wait):
            following = next(other.upstream for other in others)
        if following not in (None, attempt.upstream):
            self._around.metrics.fallback(attempt.upstream)
        delay_s = decision.delay_s if isinstance(decision, Ask) else 0.0
        await self._tell(FailedTry(attempt.upstream, len(self.errors), error, delay_s, following))
        return decision

    def _enter(self, place: int) -> Attempt | None:
        peer = self._peers[place]
        passage = peer.breaker.enter()
        if passage is None:
            return None
        self._tries[place] += 1
        return Attempt(place, peer, passage, self._call, self._around.monotonic)

    def _hedge_after(self, place: int) -> float | None:
        """How long the upstream at `place` may be silent. None: nobody else is to be asked, or can be."""
        if self._route.hedge is None or self.hedged or self._beside(place) is None:
            return None
        return hedge_after(self._route.hedge, self._peers[place].first_tokens)

    def _beside(self, place: int) -> int | None:
        """Who can be asked beside the upstream at `place`: another one, and not one that has yet to prove itself."""
        return next(
            (
                later
                for later, standing in enumerate(self._standings())
                if later > place
                and standing.willing
                and self._peers[later].breaker.state == "closed"
                and self._peers[later] is not self._peers[place]
            ),
            None,
        )

    def _second(self, first: Attempt) -> Attempt | None:
        place = self._beside(first.place)
        if place is None or not self._peers[0].allowance.spend():
            return None
        second = self._enter(place)
        self.hedged = second is not None
        return second

    def _standings(self, asked: Collection[int] = ()) -> list[Standing]:
        attempts = self._route.retry.attempts
        return [
            Standing(
                tries=self._tries[place],
                allowed=peer.retries + 1 if attempts is None else attempts,
                asked=place in asked,
                resting=not peer.breaker.admits,
            )
            for place, peer in enumerate(self._peers)
        ]

    def _resting(self) -> UpstreamResting:
        return UpstreamResting(retry_after_s=min(peer.breaker.wait_s for peer in self._peers))
