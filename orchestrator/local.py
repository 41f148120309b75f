"""The engine in this process: submits runs, tells of them, cancels them, and lets doors read their logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Literal

import msgspec

from orchestrator import trace
from orchestrator.cache.cache import NOTHING, Cache
from orchestrator.catalog import Catalog, ModelEntry, Resolved
from orchestrator.clock import Clock
from orchestrator.control import Control
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_UNAVAILABLE
from orchestrator.engine import (
    Approval,
    ControlState,
    Decision,
    Dependency,
    Details,
    History,
    Listing,
    Publication,
    Published,
    Session,
    SessionListing,
    Submission,
    Subscription,
    TimelineEvent,
)
from orchestrator.errors import HeadgateError, InvalidRequest, RunConflict, Unavailable
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.foreign import workflow_input
from orchestrator.inline import InlineRuns
from orchestrator.issuing import Issuing
from orchestrator.keys import ApiKey, Fingerprint, Rotated, StoredKey
from orchestrator.limits.limits import Limits
from orchestrator.limits.quota import Allowance
from orchestrator.listing import Records
from orchestrator.metrics import Metrics
from orchestrator.planning import Planner
from orchestrator.publishing import Publishing
from orchestrator.recall import Recall
from orchestrator.repeats import Repeats
from orchestrator.runs import (
    ALL_RUNS,
    EVERYDAY,
    QUERY_CHARS,
    Principal,
    Run,
    RunFilter,
    RunRequest,
    Scope,
    is_run_id,
    last_said,
    new_run_id,
)
from orchestrator.spending.estimate import estimate
from orchestrator.spending.report import UsageQuery, UsageReport
from orchestrator.store.store import Store
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import BEGINNING, Log, LogExists, LogUnavailable, Position
from orchestrator.tools.collisions import check_request
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import ModelCard, Upstream, UpstreamError
from orchestrator.workflows.worker import Temporal

_log = logging.getLogger(__name__)

_WITHDRAW_S = (0.5,) * 120
"""When to try again to end a refused run. Sooner than the janitor, whose patience begins when the log is back, would start it."""


class LocalEngine:
    """`engine.Engine` over the log, the desk and Temporal of this process."""

    def __init__(
        self,
        *,
        log: Log,
        fanout: Fanout,
        store: Store,
        records: Records,
        control: Control,
        publishing: Publishing,
        catalog: Catalog,
        planner: Planner,
        recall: Recall,
        upstreams: Mapping[str, Upstream],
        inline: InlineRuns,
        temporal: Temporal,
        ender: Ender,
        limits: Limits,
        tokens: Tokenizer,
        cache: Cache,
        metrics: Metrics,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._log = log
        self._fanout = fanout
        self._store = store
        self._records = records
        self._control = control
        self._publishing = publishing
        self._catalog = catalog
        self._planner = planner
        self._recall = recall
        self._upstreams = upstreams
        self._inline = inline
        self._temporal = temporal
        self._ender = ender
        self._limits = limits
        self._tokens = tokens
        self._cache = cache
        self._metrics = metrics
        self._clock = clock
        self._random_bytes = random_bytes
        self._repeats = Repeats(log, self._new_run_id)
        self._issuing = Issuing(store.keys, clock)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait a moment for what was begun on behalf of callers who did not wait."""
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=5.0)
            for task in left:
                task.cancel()

    def resolve(self, model: str) -> Resolved:
        return self._catalog.resolve(model)

    async def submit(self, principal: Principal, submission: Submission) -> Run:
        resolved = self._planner.resolve(submission)
        if submission.run_id is not None:
            return await self._begin_as(submission.run_id, principal, submission, resolved)
        if submission.idempotency is None:
            return await self._begin(self._new_run_id(), principal, submission, resolved)
        return await self._repeats.submit(
            principal, submission.idempotency, lambda run_id: self._begin(run_id, principal, submission, resolved)
        )

    async def _begin_as(self, run_id: str, principal: Principal, submission: Submission, resolved: Resolved) -> Run:
        if not is_run_id(run_id):
            raise InvalidRequest("A workflow_id is `task-` and 32 hexadecimal digits.", param="workflow_id")
        try:
            if await self._log.run(run_id) is not None or await self._store.run(run_id) is not None:
                raise LogExists  # before limits take it for a run that begins
            return await self._begin(run_id, principal, submission, resolved)
        except LogExists:
            raise RunConflict("There is a run with this workflow_id already.", code="workflow_exists") from None

    def _new_run_id(self) -> str:
        return new_run_id(int(self._clock.time() * 1000), self._random_bytes)

    async def _begin(self, run_id: str, principal: Principal, submission: Submission, resolved: Resolved) -> Run:
        """Open and start the run with this id. Raises LogExists."""
        entry = resolved.entry
        if entry.plan is not None:
            check_request(entry.plan.tools(), submission.body)
        body = submission.body
        if entry.memory is not None and submission.session_id is not None:
            body = await self._recall.body(principal, submission.session_id, body, entry.memory, resolved.upstream_model)
        now_ms = int(self._clock.time() * 1000)
        run = Run(
            id=run_id,
            tenant=principal.tenant,
            model=submission.model,
            answers=entry.answers,
            created_ms=now_ms,
            durable=entry.durability == "temporal",
            foreign=entry.workflow is not None,
            options=submission.options,
            session_id=submission.session_id,
            query=last_said(submission.body)[:QUERY_CHARS] or None,
            metadata=submission.metadata,
            key_id=principal.key_id,
            price=None if entry.price is None else entry.price.price(),
            budget_tokens=_budget(submission, entry),
            deadline_ms=None if entry.timeout_s is None else now_ms + round(entry.timeout_s * 1000),
        )
        request = RunRequest(
            model=submission.model,
            upstream_model=resolved.upstream_model,
            plan={} if entry.plan is None else entry.plan.kept(),
            body=body,
            workflow=None if entry.workflow is None else entry.workflow.model_dump(mode="json"),
            context=submission.context,
            trace=trace.current(),
        )
        if entry.workflow is not None:
            workflow_input(run, request, entry.workflow.input)  # one that is too large must not leave half a run
        started = Event(
            EventType.WORKFLOW_STARTED,
            timestamp(now_ms),
            payload={
                "model": run.model,
                "answers": list(run.answers),
                "durable": run.durable,
                **({} if entry.plan is None else entry.plan.about()),
            },
        )
        counts = self._limits.counts_tokens(principal)
        wants = await estimate(self._tokens, submission, resolved) if counts else None
        shared = submission.idempotency is not None or submission.run_id is not None
        admitted = await self._limits.admit(principal, run.id, now_ms, wants, may_repeat=shared)
        run = msgspec.structs.replace(run, hold=admitted.hold)
        try:
            begun = await self._answer(run, request, started, submission, entry)
        except LogExists:
            raise  # whoever opened it holds what it was admitted with, which is the same
        except BaseException:
            if not shared:  # another may have begun the very run meanwhile
                self._limits.cancel(run)
            raise
        if begun.cached is not None:
            self._limits.cancel(run)
        return msgspec.structs.replace(begun, quota=admitted.quota)

    async def _answer(self, run: Run, request: RunRequest, started: Event, submission: Submission, entry: ModelEntry) -> Run:
        """Give an answer again, or start what gives a new one. Raises LogExists."""
        looked = NOTHING
        if entry.cache is not None and entry.plan is not None and submission.cache != "avoid":
            looked = await self._cache.look(run, request, entry.plan, entry.cache, renew=submission.cache == "renew")
            if looked.answered is not None:
                return looked.answered
        self._fanout.hold(run.id, run.tenant)
        try:
            await self._log.open(run, request, [encode(started)], events=[started])
        except LogUnavailable:
            self._in_background(self._withdraw(run.id, opened=False))
            raise
        self._metrics.run_started()
        if looked.lesson is not None:
            self._cache.learn(run, looked.lesson)
        if entry.plan is not None and not run.durable:
            self._inline.start(run, request, entry.plan)
        else:
            await self._start_durable(run, request)
        return run

    async def get(self, principal: Principal, run_id: str) -> Run:
        return await self._records.run(principal, run_id)

    async def details(self, principal: Principal, run_id: str) -> Details:
        return await self._records.details(principal, run_id)

    async def list(self, principal: Principal, which: RunFilter = ALL_RUNS, *, offset: int = 0, limit: int = 20) -> Listing:
        return await self._records.page(principal, which, offset, limit)

    async def history(
        self, principal: Principal, run_id: str, *, after_seq: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> History:
        return await self._records.history(principal, run_id, after_seq, limit, types)

    async def timeline(self, principal: Principal, run_id: str, *, full: bool = False) -> Sequence[TimelineEvent]:
        run = await self._records.run(principal, run_id)
        return await self._temporal.timeline(run.id, full=full) if run.durable else ()

    async def sessions(self, principal: Principal, *, offset: int = 0, limit: int = 20) -> SessionListing:
        return await self._records.sessions(principal, offset, limit)

    async def session(self, principal: Principal, session_id: str) -> Session:
        return await self._records.session(principal, session_id)

    async def title_session(self, principal: Principal, session_id: str, title: str) -> Session:
        return await self._records.title_session(principal, session_id, title)

    async def delete_session(self, principal: Principal, session_id: str) -> None:
        await self._records.delete_session(principal, session_id)

    async def usage(self, principal: Principal, query: UsageQuery) -> UsageReport:
        return await self._records.usage(principal, query)

    async def cancel(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.cancel(principal, run_id, reason)

    async def pause(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.pause(principal, run_id, reason)

    async def resume(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.resume(principal, run_id, reason)

    async def control_state(self, principal: Principal, run_id: str) -> ControlState:
        return await self._control.state(principal, run_id)

    async def publish(self, principal: Principal, run_id: str, publication: Publication) -> Published:
        return await self._publishing.publish(await self._records.run(principal, run_id), publication)

    async def approvals(self, principal: Principal, session_id: str | None = None) -> Sequence[Approval]:
        return await self._control.approvals(principal, session_id)

    async def decide(self, principal: Principal, run_id: str, decision: Decision) -> None:
        await self._control.decide(principal, run_id, decision)

    async def create_key(
        self,
        principal: Principal,
        fingerprint: Fingerprint,
        name: str,
        scopes: frozenset[Scope] = EVERYDAY,
        expires_ms: int | None = None,
        limits: Allowance | None = None,
    ) -> ApiKey:
        return await self._issuing.create(
            principal.tenant, fingerprint, name, scopes=scopes, expires_ms=expires_ms, limits=limits
        )

    async def list_keys(self, principal: Principal) -> Sequence[ApiKey]:
        return await self._issuing.list(principal.tenant)

    async def revoke_key(self, principal: Principal, key_id: str) -> ApiKey:
        return await self._issuing.revoke(principal.tenant, key_id)

    async def rotate_key(self, principal: Principal, key_id: str, fingerprint: Fingerprint, overlap_ms: int = 0) -> Rotated:
        return await self._issuing.rotate(principal.tenant, key_id, fingerprint, overlap_ms)

    async def find_keys(self, prefix: str) -> Sequence[StoredKey]:
        return await self._store.keys.find(prefix)

    async def key_states(self, key_ids: Sequence[str]) -> Sequence[ApiKey]:
        return [found.key for found in await self._store.keys.get(key_ids)]

    async def touch_keys(self, used_ms: Mapping[str, int]) -> None:
        await self._store.keys.touch(used_ms)

    async def shared_secret(self, name: str, proposed: bytes) -> bytes:
        return await self._store.keys.secret(name, proposed)

    @asynccontextmanager
    async def subscribe(
        self, principal: Principal, run_id: str, position: Position = BEGINNING, *, answers: bool = False
    ) -> AsyncIterator[Subscription]:
        if self._fanout.tenant(run_id) != principal.tenant:
            await self.get(principal, run_id)
        place = nullcontext() if answers else self._limits.reading(principal)
        async with place, self._fanout.subscribe(run_id, position) as cursor:
            yield cursor

    async def models(self) -> Sequence[ModelCard]:
        cards = {name: ModelCard(name, owned_by=entry.owned_by) for name, entry in self._catalog.named()}
        asked = [
            (prefix, next(iter(agent.upstream)))
            for prefix, entry in self._catalog.patterns()
            if entry.plan is not None
            for _, agent in entry.plan.agents()
            if agent.model is None
        ]
        names = dict.fromkeys(upstream for _, upstream in asked)
        served = dict(zip(names, await asyncio.gather(*map(self._served, names)), strict=True))
        for prefix, upstream in asked:
            for card in served[upstream]:
                cards.setdefault(prefix + card.id, ModelCard(prefix + card.id, card.created, card.owned_by))
        return list(cards.values())

    async def _served(self, upstream: str) -> Sequence[ModelCard]:
        try:
            return await self._upstreams[upstream].models()
        except UpstreamError as error:
            _log.info("the models of an upstream are not known: %s", error.code)
            return ()

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        redis, temporal, postgres = await asyncio.gather(
            _probe(self._log.ping(), required=True),
            _probe(self._temporal.ping(), required=False),
            _probe(self._store.ping(), required=False),
        )
        return {"redis": redis, "temporal": temporal, "postgres": postgres}

    async def _start_durable(self, run: Run, request: RunRequest) -> None:
        try:
            await self._temporal.start(run, request)
        except Unavailable:
            # The start may have happened all the same, unseen. It then finds a closed log and does no harm.
            try:
                await self._ender.fail(run.id, ENGINE_UNAVAILABLE)
            except LogUnavailable:
                self._in_background(self._withdraw(run.id, opened=True))
            raise

    async def _withdraw(self, run_id: str, *, opened: bool) -> None:
        """End a run whose submission was refused, though it may be in the log: nobody waits for it, and the janitor is not to
        start it. Where the log is away for longer than this insists, the run is executed for nothing.

        One that is not in the log may still enter it: a Redis that was frozen reads what was sent on the lost connection when it
        wakes up, perhaps after it has answered us on the new one. So the first such answer does not count.
        """
        answered = False
        for pause_s in _WITHDRAW_S:
            try:
                if await self._ender.fail(run_id, ENGINE_UNAVAILABLE):
                    if not opened:
                        self._metrics.run_started()
                    return
                if answered:
                    return
                answered = True
            except LogUnavailable:
                answered = False
            await asyncio.sleep(pause_s)
        _log.warning("a run that was refused may be in the log", extra={"workflow_id": run_id})

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _budget(submission: Submission, entry: ModelEntry) -> int | None:
    """The smaller of what the request and the model allow."""
    budgets = [submission.budget_tokens, None if entry.budget is None else entry.budget.tokens]
    return min((tokens for tokens in budgets if tokens is not None), default=None)


async def _probe(ping: Awaitable[None], *, required: bool) -> Dependency:
    try:
        async with asyncio.timeout(2.0):
            await ping
    except TimeoutError:
        return Dependency(False, required, "does not answer")
    except HeadgateError as error:
        return Dependency(False, required, error.message)
    return Dependency(True, required)
