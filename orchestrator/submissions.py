"""Submissions: how a run begins. What it runs, whether it may, whether its answer is known, its log, its start, in this order.

Whatever is refused on the way leaves nothing behind: what limits have given is given back, and a run whose refusal was told is
ended before the janitor could start it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from orchestrator import trace
from orchestrator.cache.cache import NOTHING, Cache
from orchestrator.catalog import ModelEntry, Resolved
from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.endings import ENGINE_UNAVAILABLE
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest, RunConflict, Unavailable
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.foreign import workflow_input
from orchestrator.inline import InlineRuns
from orchestrator.limits.limits import Limits
from orchestrator.metrics import Metrics
from orchestrator.planning import Planner
from orchestrator.recall import Recall
from orchestrator.repeats import Repeats
from orchestrator.runs import QUERY_CHARS, Principal, Run, RunRequest, is_run_id, last_said, new_run_id
from orchestrator.spending.estimate import estimate
from orchestrator.store.store import Store
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Log, LogExists, LogUnavailable
from orchestrator.tools.collisions import check_request
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.workflows.worker import Temporal

_log = logging.getLogger(__name__)

_WITHDRAW_S = (0.5,) * 120
"""When to try again to end a refused run. Sooner than the janitor, whose patience begins when the log is back, would start it."""


class Submissions:
    def __init__(
        self,
        *,
        log: Log,
        fanout: Fanout,
        store: Store,
        planner: Planner,
        recall: Recall,
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
        self._planner = planner
        self._recall = recall
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
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait a moment for what was begun on behalf of callers who did not wait."""
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=5.0)
            for task in left:
                task.cancel()

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
        run = await self._log.run(run_id)
        if run is None and await self._store.run(run_id) is None:  # asked before limits take it for a run that begins
            if submission.idempotency is not None:
                await self._repeats.claim(principal, submission.idempotency, run_id)
            try:
                return await self._begin(run_id, principal, submission, resolved)
            except LogExists:
                run = await self._log.run(run_id)
        once = _once(submission)
        if run is not None and once is not None and (run.tenant, run.once) == (principal.tenant, once):
            return msgspec.structs.replace(run, repeated=True)
        raise RunConflict("There is a run with this workflow_id already.", code="workflow_exists")

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
        run, request = _run(run_id, principal, submission, entry, now_ms), _request(submission, resolved, body)
        if entry.workflow is not None:
            workflow_input(run, request, entry.workflow.input)  # one that is too large must not leave half a run
        counts = self._limits.counts_tokens(principal)
        wants = await estimate(self._tokens, body, resolved) if counts else None
        shared = _shared(submission)
        admitted = await self._limits.admit(principal, run.id, now_ms, wants, may_repeat=shared)
        run = msgspec.structs.replace(run, hold=admitted.hold)
        try:
            begun = await self._answer(run, request, _started(run, entry), submission, entry)
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
        except (LogUnavailable, asyncio.CancelledError) as error:
            if isinstance(error, LogUnavailable) or not _shared(submission):
                self._in_background(self._withdraw(run.id, opened=False))
            raise
        self._metrics.run_started()
        if looked.lesson is not None:
            self._cache.learn(run, looked.lesson)
        if entry.plan is not None and not run.durable:
            self._inline.start(run, request, entry.plan)
        else:
            await self._start_durable(run, request, shared=_shared(submission))
        return run

    async def _start_durable(self, run: Run, request: RunRequest, *, shared: bool) -> None:
        """Whoever is cancelled here never told anybody of the run, unless others may have it: then the janitor starts it."""
        try:
            await self._temporal.start(run, request)
        except asyncio.CancelledError:
            if not shared:
                self._in_background(self._withdraw(run.id, opened=True))
            raise
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


def _shared(submission: Submission) -> bool:
    """Whether others may begin the very same run at the same time."""
    return submission.idempotency is not None or submission.run_id is not None


def _once(submission: Submission) -> str | None:
    """By what its repetitions know a run whose id they bring along. Others may bring it too."""
    asked = submission.idempotency
    return None if asked is None or submission.run_id is None else f"{asked.key} {asked.digest}"


def _run(run_id: str, principal: Principal, submission: Submission, entry: ModelEntry, now_ms: int) -> Run:
    return Run(
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
        once=_once(submission),
        key_id=principal.key_id,
        price=None if entry.price is None else entry.price.price(),
        budget_tokens=_budget(submission, entry),
        deadline_ms=None if entry.timeout_s is None else now_ms + round(entry.timeout_s * 1000),
    )


def _request(submission: Submission, resolved: Resolved, body: dict[str, Any]) -> RunRequest:
    """`body` is the submission's, with what is remembered of its session."""
    entry = resolved.entry
    return RunRequest(
        model=submission.model,
        upstream_model=resolved.upstream_model,
        plan={} if entry.plan is None else entry.plan.kept(),
        body=body,
        workflow=None if entry.workflow is None else entry.workflow.model_dump(mode="json"),
        context=submission.context,
        trace=trace.current(),
    )


def _started(run: Run, entry: ModelEntry) -> Event:
    about = {} if entry.plan is None else entry.plan.about()
    payload = {"model": run.model, "answers": list(run.answers), "durable": run.durable, **about}
    return Event(EventType.WORKFLOW_STARTED, timestamp(run.created_ms), payload=payload)


def _budget(submission: Submission, entry: ModelEntry) -> int | None:
    """The smaller of what the request and the model allow. Raises InvalidRequest where nobody here could keep to it."""
    if submission.budget_tokens is not None and entry.plan is None:
        raise InvalidRequest(
            "The model is a workflow of its own, which cannot be held to a budget of tokens.",
            code="budget_not_supported",
            param="budget_tokens",
        )
    budgets = [submission.budget_tokens, None if entry.budget is None else entry.budget.tokens]
    return min((tokens for tokens in budgets if tokens is not None), default=None)
