"""Which upstream answers a call: asked in order, with patience, perhaps two at once, until the first output.

`decision.py` decides, `breaker.py` says whom to leave alone, `hedge.py` when to ask two, and `errand.py` carries it out. After
the first output nothing is tried again here, and a piece of the answer costs what it costs to pass it on.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from orchestrator.metrics import Metrics, NoMetrics
from orchestrator.upstreams.attempt import Attempt, Peer
from orchestrator.upstreams.balance import Names, ordered
from orchestrator.upstreams.breaker import Breaker, outcome_of
from orchestrator.upstreams.config import BreakerConfig
from orchestrator.upstreams.errand import Errand, Surroundings, Tell, tell_nobody
from orchestrator.upstreams.route import Route
from orchestrator.upstreams.upstream import Call, Piece, Upstream

_ORDINARY = Route()


class Answer:
    """An answer that has begun: who gives it, after how many tries, and its pieces from the first one on.

    `continued`: it goes on from the call's prefix. `hedged`: two were asked for it. `lost`: the one of them that had not said
    anything when this one did; its call is closed, and was not free. `passed_over`: who comes before it and was left alone.
    """

    def __init__(self, attempt: Attempt, errand: Errand) -> None:
        self.upstream = attempt.upstream
        self.attempt = len(errand.errors) + 1
        self.continued = attempt.continued
        self.hedged = errand.hedged
        self.lost = errand.lost
        self.passed_over = errand.passed_over(attempt.place)
        self._first = attempt.first
        self._rest = attempt.rest

    async def __aiter__(self) -> AsyncGenerator[Sequence[Piece], None]:
        yield self._first
        async for pieces in self._rest:
            yield pieces


class Router:
    """Shared by all calls of a process: circuits, usual times and the allowance for hedges are learned from all of them."""

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        retries: Mapping[str, int] | None = None,
        breakers: Mapping[str, BreakerConfig | None] | None = None,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`retries` names how many more tries each upstream may have where the route does not say, `breakers` when each is left
        alone; one that is not named has no more tries, and is never left alone."""
        retries, breakers, metrics = retries or {}, breakers or {}, metrics or NoMetrics()

        def breaker(name: str) -> Breaker:
            return Breaker(breakers.get(name), monotonic, lambda state: metrics.circuit(name, state))

        peers = {name: Peer(upstream, breaker(name), retries.get(name, 0)) for name, upstream in upstreams.items()}
        self._around = Surroundings(peers, metrics, clock, monotonic, chance, sleep)

    def continues(self, names: Names) -> bool:
        """Whether every one of these upstreams can go on from a prefix."""
        return all(self._around.peers[name].upstream.continues for name in names)

    @asynccontextmanager
    async def ask(
        self,
        names: Names,
        call: Call,
        tell: Tell = tell_nobody,
        *,
        route: Route = _ORDINARY,
        until_s: float = math.inf,
        after: str | None = None,
    ) -> AsyncIterator[Answer]:
        """The answer of the first upstream that begins one. Leaving the block closes its socket.

        Raises the most telling UpstreamError when none does, and, while the answer is read, whatever breaks it off. No delay
        goes beyond `until_s` (on `clock`) or the call's own deadline. `after`: the upstream that broke off what this continues.
        """
        errand = Errand(self._around, ordered(names, self._around.chance, after), call, tell, route, until_s)
        attempt = await errand.begun()
        try:
            yield Answer(attempt, errand)
        except BaseException as error:
            await attempt.close(outcome_of(error))
            raise
        await attempt.close("good")
