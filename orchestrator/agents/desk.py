"""All agents that work in this process: starts them, takes over from lost attempts, keeps their leases, stops them.

One tick a second serves all of them: it renews the leases of those that have been silent and lets their owners know that they
are alive.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import ParamSpec, TypeVar

from orchestrator.agents.agent import Agent
from orchestrator.agents.history import Past, asked_to_stop, ended, past
from orchestrator.agents.job import Job, Stop
from orchestrator.agents.transcript import Transcript
from orchestrator.clock import Clock
from orchestrator.endings import ENGINE_ERROR
from orchestrator.events import Timestamps
from orchestrator.metrics import Metrics
from orchestrator.plans.interpreter import StepResult
from orchestrator.runs import RunState
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Log, LogClosed, LogMissing, LogUnavailable
from orchestrator.tools.registry import Tools
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.tokens import Tokenizer

_log = logging.getLogger(__name__)

TICK_S = 1.0

_Args = ParamSpec("_Args")
_Answer = TypeVar("_Answer")

Beat = Callable[[], None]


def no_beat() -> None:
    """For agents that nobody watches."""


class Desk:
    """`buffer_bytes`: how much an agent may have waiting for the log before it stops reading its upstream."""

    def __init__(
        self,
        *,
        log: Log,
        fanout: Fanout,
        router: Router,
        tools: Tools,
        tokens: Tokenizer,
        metrics: Metrics,
        clock: Clock,
        spending: Spending,
        buffer_bytes: int = 1 << 20,
    ) -> None:
        self._buffer_bytes = buffer_bytes
        self._spending = spending
        self._log = log
        self._fanout = fanout
        self._router = router
        self._tools = tools
        self._tokens = tokens
        self._metrics = metrics
        self._clock = clock
        self._timestamps = Timestamps(clock.time)
        self._agents: dict[Agent, Beat] = {}
        self._by_run: dict[str, set[Agent]] = {}

    async def work(
        self, job: Job, *, beat: Beat = no_beat, cancelled: Callable[[], Stop] = lambda: Stop("shutdown")
    ) -> StepResult:
        """Execute one attempt, after waiting for the lease of a lower one that is still alive.

        A run that has ended meanwhile, or whose log is gone, gives the result it has. Raises LogRefused when the log refused to
        go on, Interrupted on shutdown.
        """
        if job.run.state.ended:
            return await self._patiently(self._result, job.run.id)
        agent = Agent(
            job,
            log=self._log,
            router=self._router,
            tools=self._tools,
            tokens=self._tokens,
            metrics=self._metrics,
            clock=self._clock,
            timestamps=self._timestamps,
            cancelled=cancelled,
            buffer_bytes=self._buffer_bytes,
            spending=self._spending,
        )
        try:
            with self._registered(job.run.id, agent, beat):
                before = await self._before(job, agent)
                if before.result is not None and not job.final:
                    return before.result
                with self._fanout.writing(job.run.id):
                    return await agent.run(before)
        except LogClosed:
            return await self._patiently(self._result, job.run.id)
        except LogMissing:
            return StepResult(RunState.FAILED, ended=True, failure=ENGINE_ERROR)

    def stop(self, run_id: str, stop: Stop) -> bool:
        """Stop the run's agents in this process. False if it has none here."""
        agents = list(self._by_run.get(run_id, ()))
        for agent in agents:
            agent.stop(stop)
        return bool(agents)

    def pause(self, run_id: str) -> bool:
        """Let the run's agents in this process break off, those that can. False if it has none here."""
        agents = list(self._by_run.get(run_id, ()))
        for agent in agents:
            agent.pause()
        return bool(agents)

    def stop_all(self, stop: Stop) -> None:
        for agent in list(self._agents):
            agent.stop(stop)

    @asynccontextmanager
    async def ticking(self) -> AsyncIterator[None]:
        """Keep leases and beat while this is entered."""
        task = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for beat in list(self._agents.values()):
                try:
                    beat()
                except Exception:  # noqa: BLE001 - one owner's trouble must not let the leases of all the others lapse
                    _log.exception("a beat failed; the next one comes")
            due = [agent for agent in self._agents if agent.due]
            for outcome in await asyncio.gather(*(agent.renew() for agent in due), return_exceptions=True):
                if isinstance(outcome, Exception):
                    _log.error("renewing a lease failed; the next tick comes", exc_info=outcome)

    async def _before(self, job: Job, agent: Agent) -> Past:
        """What came before this attempt. The agent can be stopped by now; what was asked for earlier is in the log.

        A run that is not durable begins where and when it is submitted, so nothing was before its first step.
        """
        if job.fresh and not job.run.durable:
            return Past(Transcript())
        if not job.fresh:
            await self._take_over(job)
        if (stop := await self._patiently(asked_to_stop, self._log, job.run.id)) is not None:
            agent.stop(stop)
        if job.fresh:
            return Past(Transcript())
        return await self._patiently(past, self._log, job.run.id, job.step.name, job.visit)

    async def _take_over(self, job: Job) -> None:
        """Wait until the writer can be had: its lease has lapsed or was released. The wait is bounded by the lease."""
        while True:
            claim = await self._patiently(self._log.claim, job.run.id, job.writer, job.attempt, job.lease_ms)
            if not claim.held_ms:
                return
            await asyncio.sleep(min(claim.held_ms / 1000, TICK_S))

    async def _patiently(self, ask: Callable[_Args, Awaitable[_Answer]], *args: _Args.args, **kwargs: _Args.kwargs) -> _Answer:
        """The log's answer, however long it is away: an outage is no failure of the run."""
        while True:
            try:
                return await ask(*args, **kwargs)
            except LogUnavailable as error:
                _log.warning("an attempt waits for the log: %s", error)
                await asyncio.sleep(TICK_S)

    async def _result(self, run_id: str) -> StepResult:
        outcome = await ended(self._log, run_id)
        if outcome is None:
            return StepResult(RunState.FAILED, ended=True, failure=ENGINE_ERROR)
        return StepResult(outcome.state, ended=True, failure=outcome.failure, reason=outcome.reason)

    @contextmanager
    def _registered(self, run_id: str, agent: Agent, beat: Beat) -> Iterator[None]:
        self._agents[agent] = beat
        self._by_run.setdefault(run_id, set()).add(agent)
        try:
            yield
        finally:
            del self._agents[agent]
            agents = self._by_run[run_id]
            agents.discard(agent)
            if not agents:
                del self._by_run[run_id]
