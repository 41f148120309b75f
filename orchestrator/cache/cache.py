"""The cache: finds the recorded answer to a request, and answers a run with it.

The very same question is looked for first; one that means the same only if that was never asked.
"""

from __future__ import annotations

import msgspec

from orchestrator.cache.config import CacheConfig
from orchestrator.cache.exact import Exact
from orchestrator.cache.key import certain, digest, question
from orchestrator.cache.recordings import Hit
from orchestrator.cache.similar import Known, Lesson, Similar
from orchestrator.clock import Clock
from orchestrator.endings import completed_as
from orchestrator.events import Event, EventType, encode, restamped, timestamp
from orchestrator.metrics import Metrics
from orchestrator.plans.plan import Plan
from orchestrator.runs import Cached, Run, RunRequest, RunState
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Log


class Looked(msgspec.Struct, frozen=True):
    """What came of looking: the run, if it is answered; otherwise what is to be learnt from it, if anything."""

    answered: Run | None = None
    lesson: Lesson | None = None


NOTHING = Looked()


class Cache:
    """`similar` is there if a model asks for it."""

    def __init__(self, exact: Exact, similar: Similar | None, log: Log, fanout: Fanout, metrics: Metrics, clock: Clock) -> None:
        self._exact = exact
        self._similar = similar
        self._log = log
        self._fanout = fanout
        self._metrics = metrics
        self._clock = clock

    async def look(self, run: Run, request: RunRequest, plan: Plan, config: CacheConfig, *, renew: bool) -> Looked:
        """Answer the run if its request was answered before: it is opened, and over. Otherwise it has to be executed.

        `renew`: it is executed in any case, and later ones are given what it says. Raises LogExists, LogUnavailable.
        """
        if not (config.any_temperature or certain(plan, request.body)):
            return NOTHING
        key = digest(run, request)
        hit, lesson = await self._exact.find(run, key, config, renew=renew), None
        if hit is None:
            hit, lesson = await self._alike(run, request, key, config, renew)
        self._metrics.cached("miss" if hit is None else "exact" if hit.score is None else "semantic")
        return Looked(lesson=lesson) if hit is None else Looked(await self._say_again(run, request, plan, hit))

    def learn(self, run: Run, lesson: Lesson) -> None:
        """The run has been opened."""
        if self._similar is not None and lesson.config.semantic is not None:
            self._similar.learn(run, lesson, lesson.config.semantic)

    async def _alike(
        self, run: Run, request: RunRequest, key: str, config: CacheConfig, renew: bool
    ) -> tuple[Hit | None, Lesson | None]:
        asked = question(run, request) if self._similar is not None and config.semantic is not None else None
        if asked is None or self._similar is None or config.semantic is None:
            return None, None
        found = await self._similar.find(run, asked, config, config.semantic, renew=renew)
        if not isinstance(found, Known):
            return None, found
        await self._exact.learn(run, key, found.hit, min(found.left_s, config.ttl_s))
        return found.hit, None

    async def _say_again(self, run: Run, request: RunRequest, plan: Plan, hit: Hit) -> Run:
        """Open the run with all that it will ever say. Temporal has no part in it, so it is not a durable one."""
        at = timestamp(run.created_ms)
        found = hit.recording
        run = msgspec.structs.replace(run, durable=False, state=RunState.COMPLETED, cached=Cached(found.run_id, hit.score))
        about = {"model": run.model, "answers": list(run.answers), "durable": False, "cached_from": found.run_id}
        about |= plan.about()
        if hit.score is not None:
            about["cache_score"] = hit.score
        started = Event(EventType.WORKFLOW_STARTED, at, payload=about)
        ending = completed_as(at, {**found.ending, "duration_ms": 0})
        bodies = [encode(started), *(restamped(body, at) for body in found.bodies), *map(encode, ending)]
        self._fanout.hold(run.id, run.tenant)
        await self._log.open(run, request, bodies)
        self._metrics.run_started()
        self._metrics.run_ended(run.state, self._clock.time() - run.created_ms / 1000)
        return run
