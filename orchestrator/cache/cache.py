"""The cache: finds the recorded answer to a request, and answers a run with it.

What is kept of an answer is which run gave it, under the key of its question; the recording is that run's own log. The key goes
to a run when it begins, in the very call that looks for an earlier one, and whether the run came to anything is judged when
somebody asks again. So a miss costs one call to Redis, an ending costs nothing, and what failed, was cancelled or was lost cannot
be given again. Of several that ask the same at once each is answered by a run of its own, and the first is kept.
"""

from __future__ import annotations

import asyncio

import msgspec

from orchestrator.cache.config import CacheConfig
from orchestrator.cache.key import certain, digest
from orchestrator.cache.recording import MAX_EVENTS, Recording, recording
from orchestrator.clock import Clock
from orchestrator.endings import completed_as
from orchestrator.events import Event, EventType, encode, restamped, timestamp
from orchestrator.metrics import Metrics
from orchestrator.plans.plan import Plan
from orchestrator.runs import Cached, Run, RunRequest, RunState
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import ANY_RUN, Log, Reservation


class Cache:
    def __init__(self, log: Log, fanout: Fanout, metrics: Metrics, clock: Clock) -> None:
        self._log = log
        self._fanout = fanout
        self._metrics = metrics
        self._clock = clock

    async def answer(self, run: Run, request: RunRequest, plan: Plan, config: CacheConfig, *, renew: bool) -> Run | None:
        """The run, opened and over, if its request was answered before. None: it has to be executed.

        `renew`: it is executed in any case, and later ones are given what it says. Raises LogExists, LogUnavailable.
        """
        if not (config.any_temperature or certain(plan, request.body)):
            return None
        found = await self._found(run, digest(request), config, renew)
        self._metrics.cached("miss" if found is None else "exact")
        return None if found is None else await self._say_again(run, request, found)

    async def _found(self, run: Run, key: str, config: CacheConfig, renew: bool) -> Recording | None:
        """The recording under this key. Where there is none, and none in the making, this run's is to be it."""
        name, keep_ms = f"cache {key}", max(1, round(config.ttl_s * 1000))  # no idempotency key has spaces
        wanted = Reservation(run.id, key)
        held = await self._log.reserve(run.tenant, name, wanted, instead_of=ANY_RUN if renew else "", keep_ms=keep_ms)
        if held.run_id == run.id:
            return None
        earlier, entries = await asyncio.gather(self._log.run(held.run_id), self._log.read(held.run_id, 0, MAX_EVENTS))
        if earlier is not None and not earlier.state.ended:
            return None
        found = None if earlier is None else recording(earlier, entries, side_effects=config.side_effects)
        if found is None:
            await self._log.reserve(run.tenant, name, wanted, instead_of=held.run_id, keep_ms=keep_ms)
        return found

    async def _say_again(self, run: Run, request: RunRequest, found: Recording) -> Run:
        """Open the run with all that it will ever say. Temporal has no part in it, so it is not a durable one."""
        at = timestamp(run.created_ms)
        run = msgspec.structs.replace(run, durable=False, state=RunState.COMPLETED, cached=Cached(found.run_id))
        about = {"model": run.model, "answers": list(run.answers), "durable": False, "cached_from": found.run_id}
        started = Event(EventType.WORKFLOW_STARTED, at, payload=about)
        ending = completed_as(at, {**found.ending, "duration_ms": 0})
        bodies = [encode(started), *(restamped(body, at) for body in found.bodies), *map(encode, ending)]
        self._fanout.hold(run.id, run.tenant)
        await self._log.open(run, request, bodies)
        self._metrics.run_started()
        self._metrics.run_ended(run.state, self._clock.time() - run.created_ms / 1000)
        return run
