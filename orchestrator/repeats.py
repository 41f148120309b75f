"""Repeated submissions: of all that carry one idempotency key, one begins the run and the others get it.

The key is a name that is reserved for the id of a run before that run is opened. The log opens a run once. So whoever finds a
name whose run is not there, because its first caller is still at it or has died, opens it in its stead under the same id: one of
them does, the others find that it exists. Nobody waits for anybody.

A key stands for its run, and so for its failure too. It is free again only where the run came to nothing that is worth keeping:
it failed in a way that the client is told to try again, or was cancelled because its client left. Whatever a client cancelled
itself stays cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from orchestrator.agents.history import asked_to_stop, ended
from orchestrator.engine import DEPARTED, Idempotency
from orchestrator.errors import IdempotencyKeyReused, Unavailable
from orchestrator.runs import Principal, Run, RunState
from orchestrator.streamlog.log import ANY_RUN, Log, LogExists, Reservation

Begin = Callable[[str], Awaitable[Run]]
"""Open and start the run with this id. Raises LogExists."""

_ROUNDS = 5
"""A round more is needed for each run that came to nothing while this submission was being answered."""


class Repeats:
    def __init__(self, log: Log, new_run_id: Callable[[], str]) -> None:
        self._log = log
        self._new_run_id = new_run_id

    async def submit(self, principal: Principal, idempotency: Idempotency, begin: Begin) -> Run:
        """The run that `begin` began, here or earlier. Raises IdempotencyKeyReused, and what `begin` raises."""
        instead_of = ANY_RUN if idempotency.anew else ""
        for _ in range(_ROUNDS):
            wanted = Reservation(self._new_run_id(), idempotency.digest)
            reserved = await self._log.reserve(principal.tenant, idempotency.key, wanted, instead_of=instead_of)
            if reserved.digest != idempotency.digest:
                raise IdempotencyKeyReused
            run = None if reserved == wanted else await self._log.run(reserved.run_id)
            if run is None:
                try:
                    return await begin(reserved.run_id)
                except LogExists:
                    run = await self._log.run(reserved.run_id)
            if run is not None and await self._stands(run):
                if not run.state.ended:
                    await self._log.remember(principal.tenant, idempotency.key)
                return msgspec.structs.replace(run, repeated=True)
            instead_of = reserved.run_id
        raise Unavailable("The runs of this Idempotency-Key keep failing. Try again shortly.", retry_after_s=1.0)

    async def claim(self, principal: Principal, idempotency: Idempotency, run_id: str) -> None:
        """Let the key stand for this run and no other. Raises IdempotencyKeyReused."""
        wanted = Reservation(run_id, idempotency.digest)
        if await self._log.reserve(principal.tenant, idempotency.key, wanted) != wanted:
            raise IdempotencyKeyReused

    async def _stands(self, run: Run) -> bool:
        """Whether this is the run that repetitions get. One that is about to be cancelled is as good as cancelled."""
        if run.state is RunState.COMPLETED:
            return True
        if not run.state.ended:
            stop = await asked_to_stop(self._log, run.id)
            return stop is None or stop.reason != DEPARTED
        found = await ended(self._log, run.id)
        return found is None or not (found.reason == DEPARTED or (found.failure is not None and found.failure.retryable))
