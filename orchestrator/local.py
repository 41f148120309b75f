"""The engine in this process: submits runs, tells of them, cancels them, and lets doors read their logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import msgspec

from orchestrator.agents.desk import Desk
from orchestrator.agents.history import ended
from orchestrator.agents.job import Stop
from orchestrator.catalog import Catalog, Resolved
from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_UNAVAILABLE
from orchestrator.engine import Dependency, Page, Submission, Subscription
from orchestrator.errors import HeadgateError, InvalidRequest, RunConflict, RunNotFound, Unavailable
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.inline import InlineRuns
from orchestrator.metrics import Metrics
from orchestrator.runs import Principal, Run, RunRequest, RunState, is_run_id, new_run_id
from orchestrator.streamlog.archive import Archive
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import BEGINNING, Log, LogClosed, LogMissing, Position, RunCursor
from orchestrator.upstreams.upstream import ModelCard, Upstream, UpstreamError
from orchestrator.workflows.worker import Temporal

_log = logging.getLogger(__name__)

_CANCEL = "cancel"


class LocalEngine:
    """`engine.Engine` over the log, the desk and Temporal of this process."""

    def __init__(
        self,
        *,
        log: Log,
        fanout: Fanout,
        archive: Archive,
        catalog: Catalog,
        upstreams: Mapping[str, Upstream],
        desk: Desk,
        inline: InlineRuns,
        temporal: Temporal,
        ender: Ender,
        metrics: Metrics,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._log = log
        self._fanout = fanout
        self._archive = archive
        self._catalog = catalog
        self._upstreams = upstreams
        self._desk = desk
        self._inline = inline
        self._temporal = temporal
        self._ender = ender
        self._metrics = metrics
        self._clock = clock
        self._random_bytes = random_bytes
        self._tasks: set[asyncio.Task[None]] = set()
        log.on_control(self._controlled)

    def resolve(self, model: str) -> Resolved:
        return self._catalog.resolve(model)

    async def submit(self, principal: Principal, submission: Submission) -> Run:
        resolved = self._catalog.resolve(submission.model)
        plan = resolved.entry.plan
        if plan.agent.system is not None and not isinstance(submission.body.get("messages"), list):
            raise InvalidRequest("This model needs messages.", param="messages")
        now_ms = int(self._clock.time() * 1000)
        run = Run(
            id=new_run_id(now_ms, self._random_bytes),
            tenant=principal.tenant,
            model=submission.model,
            answers=plan.answers,
            created_ms=now_ms,
            durable=resolved.entry.durability == "temporal",
            options=submission.options,
            session_id=submission.session_id,
            metadata=submission.metadata,
        )
        request = RunRequest(
            model=submission.model,
            upstream_model=resolved.upstream_model,
            plan=plan.model_dump(mode="json"),
            body=submission.body,
        )
        started = Event(
            EventType.WORKFLOW_STARTED,
            timestamp(now_ms),
            payload={"model": run.model, "answers": run.answers, "durable": run.durable},
        )
        self._fanout.hold(run.id, run.tenant)
        await self._log.open(run, request, [encode(started)], events=[started])
        self._metrics.run_started()
        if run.durable:
            await self._start_durable(run, request)
        else:
            self._inline.start(run, request, plan)
        return run

    async def get(self, principal: Principal, run_id: str) -> Run:
        run = None
        if is_run_id(run_id):
            run = await self._log.run(run_id) or await self._archived(run_id)
        if run is None or run.tenant != principal.tenant:
            raise RunNotFound
        return run

    async def list(self, principal: Principal, before: RunCursor | None = None, limit: int = 20) -> Page:
        runs = await self._log.runs(principal.tenant, before, limit)
        if len(runs) < limit:
            cursor = RunCursor(runs[-1].created_ms, runs[-1].id) if runs else before
            runs += await self._archive.runs(principal.tenant, cursor, limit - len(runs))
        last = runs[-1] if len(runs) == limit else None
        return Page(runs, None if last is None else RunCursor(last.created_ms, last.id))

    async def cancel(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        run = await self.get(principal, run_id)
        if run.state is RunState.CANCELLED:
            return run
        if run.state.ended:
            raise RunConflict(f"The run has ended already, as {run.state}.", code="run_ended")
        detail = {"by": principal.key_id} if reason is None else {"reason": reason, "by": principal.key_id}
        asked = Event(EventType.WORKFLOW_CANCELLING, timestamp(int(self._clock.time() * 1000)), payload=detail)
        try:
            await self._log.append(run_id, _CANCEL, 1, 1, [encode(asked)], events=[asked])
        except (LogClosed, LogMissing):
            return await self._cancelled_too_late(run)
        if not self._desk.stop(run_id, Stop("cancelled", reason, principal.key_id)):
            await self._log.publish_control(run_id, msgspec.json.encode({"op": _CANCEL, **detail}).decode())
        if run.durable:
            self._in_background(self._cancel_workflow(run_id, reason))
        return run

    @asynccontextmanager
    async def subscribe(self, principal: Principal, run_id: str, position: Position = BEGINNING) -> AsyncIterator[Subscription]:
        if self._fanout.tenant(run_id) != principal.tenant:
            await self.get(principal, run_id)
        async with self._fanout.subscribe(run_id, position) as cursor:
            yield cursor

    async def models(self) -> Sequence[ModelCard]:
        cards = [ModelCard(name, owned_by=entry.owned_by) for name, entry in self._catalog.named()]
        for prefix, entry in self._catalog.patterns():
            try:
                served = await self._upstreams[entry.plan.agent.upstream[0]].models()
            except UpstreamError as error:
                _log.info("the models of an upstream are not known: %s", error.code)
                continue
            cards += [ModelCard(prefix + card.id, card.created, card.owned_by) for card in served]
        return list({card.id: card for card in reversed(cards)}.values())[::-1]

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        redis, temporal, postgres = await asyncio.gather(
            _probe(self._log.ping(), required=True),
            _probe(self._temporal.ping(), required=False),
            _probe(self._archive.ping(), required=False),
        )
        return {"redis": redis, "temporal": temporal, "postgres": postgres}

    async def close(self) -> None:
        """Wait a moment for what was begun on behalf of callers who did not wait."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5.0)

    async def _archived(self, run_id: str) -> Run | None:
        try:
            return await self._archive.run(run_id)
        except Unavailable as error:
            _log.warning("a run was looked for in the archive, which is away: %s", error)
            raise

    async def _start_durable(self, run: Run, request: RunRequest) -> None:
        try:
            await self._temporal.start(run.id, request.plan)
        except Unavailable:
            # The start may have happened all the same, unseen. It then finds a closed log and does no harm.
            await self._ender.fail(run.id, ENGINE_UNAVAILABLE)
            raise

    async def _cancel_workflow(self, run_id: str, reason: str | None) -> None:
        try:
            await self._temporal.cancel(run_id, reason)
        except Unavailable as error:
            _log.warning("cancelling a workflow waits for the janitor: %s", error, extra={"workflow_id": run_id})

    async def _cancelled_too_late(self, run: Run) -> Run:
        outcome = await ended(self._log, run.id)
        if outcome is None or outcome.state is RunState.CANCELLED:
            return run
        raise RunConflict(f"The run has ended already, as {outcome.state}.", code="run_ended")

    def _controlled(self, run_id: str, op: str) -> None:
        """Another process passes on what was asked of a run; its agents may be here."""
        try:
            asked = msgspec.json.decode(op, type=dict[str, str])
        except msgspec.DecodeError:
            _log.warning("a control message was not understood")
            return
        if asked.get("op") == _CANCEL:
            self._desk.stop(run_id, Stop("cancelled", asked.get("reason"), asked.get("by")))

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _probe(ping: Awaitable[None], *, required: bool) -> Dependency:
    try:
        async with asyncio.timeout(2.0):
            await ping
    except TimeoutError:
        return Dependency(False, required, "does not answer")
    except HeadgateError as error:
        return Dependency(False, required, error.message)
    return Dependency(True, required)
