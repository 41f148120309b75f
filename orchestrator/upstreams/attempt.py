"""One try at one upstream, up to its first output and, if it is the one that answers, to its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence

import msgspec

from orchestrator.upstreams.breaker import Breaker, Outcome, Passage, outcome_of
from orchestrator.upstreams.hedge import Allowance, FirstTokens
from orchestrator.upstreams.upstream import Call, Delta, Finish, Note, Piece, Upstream


class Peer:
    """An upstream with what this process has learned about it."""

    def __init__(self, upstream: Upstream, breaker: Breaker, retries: int) -> None:
        self.upstream = upstream
        self.breaker = breaker
        self.retries = retries
        self.first_tokens = FirstTokens()
        self.allowance = Allowance()

    @property
    def name(self) -> str:
        return self.upstream.name


class Attempt:
    """Call `begin`, then read `rest`; `close` in any case. It tells its upstream's breaker how it went."""

    def __init__(self, place: int, peer: Peer, passage: Passage, call: Call, clock: Callable[[], float]) -> None:
        """A prefix is only given to an upstream that can continue; to another the call goes without, and it begins anew."""
        upstream = peer.upstream
        self.place = place
        self.upstream = upstream.name
        self.continued = bool(call.prefix) and upstream.continues
        self.first: Sequence[Piece] = ()
        if call.prefix and not upstream.continues:
            call = msgspec.structs.replace(call, prefix="")
        self.rest: AsyncGenerator[Sequence[Piece], None] = upstream.stream(call)
        self._peer = peer
        self._passage = passage
        self._clock = clock
        self._asked_at = clock()

    async def begin(self) -> None:
        """Ask, and take all pieces up to the first batch with output in it. Raises UpstreamError."""
        try:
            self.first = await _first_output(self.rest)
        except BaseException as error:
            self._passage.end(outcome_of(error))
            raise
        self.observe()
        self._passage.began()

    def observe(self) -> None:
        """It began just now, or is given up."""
        self._peer.first_tokens.add(self._clock() - self._asked_at)

    async def close(self, outcome: Outcome = "unknown") -> None:
        """Close the socket. The first word about how it went counts."""
        self._passage.end(outcome)
        await self.rest.aclose()


async def _first_output(pieces: AsyncGenerator[Sequence[Piece], None]) -> Sequence[Piece]:
    """An answer without any output begins with what it has."""
    waiting: list[Piece] = []
    async for batch in pieces:
        waiting.extend(batch)
        if any(isinstance(piece, Delta | Finish) for piece in batch):
            return waiting
    return waiting or [Note("empty_answer")]
