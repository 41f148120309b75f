"""One attempt at an agent step: its life from the first event to the last.

Whatever happens is said truly. The answer is complete: `LLM_OUTPUT`, and, when the step is final, the run's ending in the same
append. The upstream fails: policy decides between another call and `AGENT_FAILED`. Somebody cancels: the upstream's socket is
closed, then the usage so far and the ending are written. The process goes down: the writer's lease is given back, no ending.
A later attempt reads what is in the log and goes on from there. What is said in between: `conversation.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from orchestrator import endings
from orchestrator.agents.conversation import Conversation, Paused
from orchestrator.agents.expenses import Expenses
from orchestrator.agents.history import Past, asked_to_stop
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.agents.lease import Lease
from orchestrator.agents.voice import Voice
from orchestrator.clock import Clock
from orchestrator.errors import Failure, HeadgateError
from orchestrator.events import Event, EventType, Timestamps
from orchestrator.metrics import Metrics
from orchestrator.plans.interpreter import StepResult
from orchestrator.runs import RunState
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.log import Fenced, Log, LogUnavailable
from orchestrator.streamlog.writer import EventWriter
from orchestrator.tools.registry import Tools
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Usage


class Agent:
    """One attempt. `run` executes it in the current task; `stop` ends it from outside.

    `cancelled` is asked for the reason when the task is cancelled by somebody who did not call `stop`.
    """

    def __init__(
        self,
        job: Job,
        *,
        log: Log,
        router: Router,
        tools: Tools,
        tokens: Tokenizer,
        metrics: Metrics,
        clock: Clock,
        timestamps: Timestamps,
        cancelled: Callable[[], Stop],
        buffer_bytes: int,
        spending: Spending,
    ) -> None:
        self._job = job
        self._cancelled = cancelled
        self._ending = False
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._at = timestamps
        self._task: asyncio.Task[Any] | None = None
        self._stop: Stop | None = None
        self._writer = EventWriter(
            log,
            job.run.id,
            job.writer,
            job.attempt,
            lease_ms=job.lease_ms,
            metrics=metrics,
            clock=clock,
            on_refused=self._refused,
            max_bytes=buffer_bytes,
        )
        self._lease = Lease(job, log=log, writer=self._writer, clock=clock, refused=self._lost)
        self._voice = Voice(self._writer, job.step.name, timestamps)
        self._spending = spending
        meter = spending.meter(job, lambda: self.stop(Stop("budget")), self._notice)
        self._expenses = Expenses(job, meter, tokens, self._voice)
        self._conversation = Conversation(
            job,
            self._voice,
            router=router,
            tools=tools,
            tokens=tokens,
            expenses=self._expenses,
            metrics=metrics,
            clock=clock,
        )

    def stop(self, stop: Stop) -> None:
        """End the attempt; the first reason counts."""
        if self._stop is None:
            self._stop = stop
            if self._task is not None:
                self._task.cancel()

    def pause(self) -> bool:
        """Break off so that a later attempt goes on from here. False where it could not: it is then finished, or its turn is."""
        if not self._conversation.pause():
            return False
        self.stop(Stop("paused"))
        return True

    async def run(self, past: Past) -> StepResult:
        """Say what remains to be said after `past`. Raises what the log refused it with, and Interrupted on shutdown."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        time_left_s = self._time_left_s(past)
        deadline = loop.call_later(time_left_s, self.stop, Stop("deadline"))
        if not time_left_s:  # who never has to wait would be done before the loop comes round to it
            self._stop = self._stop or Stop("deadline")
        try:
            if self._stop is not None:
                raise asyncio.CancelledError
            await self._conversation.hold(past, self._clock.time() + time_left_s)
            return await self._completed()
        except asyncio.CancelledError:
            if self._task is not None:
                self._task.uncancel()
            self._stop = self._stop or self._cancelled()
            return await self._stopped(self._stop)
        except Paused:
            self._stop = self._stop or Stop("paused")
            return await self._stopped(self._stop)
        except HeadgateError as error:
            if error is self._writer.refused:
                raise
            return await self._failed(error.failure())
        finally:
            deadline.cancel()
            self._expenses.close()
            self._task = None

    @property
    def due(self) -> bool:
        """Whether the lease needs renewing."""
        return self._task is not None and not self._ending and self._lease.due

    async def renew(self) -> None:
        await self._lease.renew()

    # -- endings ---------------------------------------------------------------------------------------------------------

    async def _completed(self) -> StepResult:
        budget = self._expenses.exceeded
        if budget is not None and not self._job.final:
            return await self._failed(budget)  # nothing pays for later steps; `Ender.fail` knows that it is no failure
        self._voice.say(EventType.AGENT_COMPLETED)
        result = StepResult(RunState.COMPLETED, ended=self._job.final)
        if not self._job.final:
            await self._hand_back()
            return result
        ending = endings.completed(
            self._at.now(),
            text=self._conversation.text,
            usage=(self._conversation.usage or Usage()).facts(),
            finish_reason=self._conversation.finish_reason or "stop",
            duration_ms=self._duration_ms(),
            budget=budget,
        )
        await self._end(ending, RunState.COMPLETED)
        return result

    async def _failed(self, failure: Failure) -> StepResult:
        if self._conversation.spoke:
            await self._conversation.break_off(final=True)
        else:
            await self._expenses.end(Usage())
        self._voice.say(EventType.AGENT_FAILED, payload={"error": msgspec.to_builtins(failure)})
        state = RunState.TIMEOUT if failure.code == endings.TIMEOUT.code else RunState.FAILED
        if self._job.final:
            await self._end(endings.failed(self._at.now(), failure, self._spent()), state)
        else:
            await self._hand_back()
        return StepResult(state, ended=self._job.final, failure=failure, step=self._job.step.name)

    async def _stopped(self, stop: Stop) -> StepResult:
        match stop.kind:
            case "cancelled":
                if stop.reason is None and stop.by is None:
                    stop = await self._as_asked(stop)
                await self._undisturbed(self._conversation.break_off(final=True))
                if self._job.final:
                    ending = endings.cancelled(self._at.now(), stop.reason, stop.by, self._spent())
                    await self._end(ending, RunState.CANCELLED)
                else:
                    await self._hand_back()
                return StepResult(RunState.CANCELLED, ended=self._job.final, reason=stop.reason)
            case "budget":
                await self._conversation.cut_short()
                return await self._completed()
            case "deadline":
                return await self._failed(endings.TIMEOUT)
            case "shutdown":
                await self._writer.abandon()
                await self._lease.release()
                await self._expenses.leave()
                raise Interrupted
            case "refused":
                await self._writer.abandon()
                raise stop.error or Interrupted()
            case "paused":
                await self._conversation.break_off(final=False)
                await self._hand_back()
                return StepResult(RunState.PAUSED, ended=False)

    async def _hand_back(self) -> None:
        """The run goes on without this attempt: nobody who takes the step up again is to wait for it."""
        await self._undisturbed(self._handed_back())

    async def _handed_back(self) -> None:
        await self._writer.flush()
        await self._lease.release()

    async def _undisturbed(self, work: Coroutine[Any, Any, None]) -> None:
        """What has been decided is done, whoever else wants the attempt to end meanwhile."""
        task = asyncio.create_task(work)
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled() or not self._comes_too_late():
                    task.cancel()
                    raise
        await task

    def _spent(self) -> dict[str, Any] | None:
        """What all calls so far used, for an ending that is not a completion."""
        usage = self._conversation.usage
        return None if usage is None else usage.facts()

    async def _end(self, ending: Sequence[Event], state: RunState) -> None:
        """Write the run's ending. It is decided now: whoever wants another one comes too late, so that there is only one."""
        self._ending = True
        writing = self._writer.end(ending, state)
        while True:
            try:
                await writing
                break
            except asyncio.CancelledError:
                if not self._comes_too_late():
                    raise
                writing = self._writer.flush()
        self._metrics.run_ended(state, self._clock.time() - self._job.run.created_ms / 1000)
        await self._spending.settle(self._job.run)

    async def _as_asked(self, stop: Stop) -> Stop:
        """The words in which it was asked for; who passes a cancellation on may not know them."""
        try:
            return await asked_to_stop(self._log, self._job.run.id) or stop
        except LogUnavailable:
            return stop

    def _comes_too_late(self) -> bool:
        self._stop = self._stop or self._cancelled()
        if self._stop.kind in ("shutdown", "refused"):
            return False
        if self._task is not None:
            self._task.uncancel()
        return True

    # -- the writer ------------------------------------------------------------------------------------------------------

    def _lost(self, error: HeadgateError) -> None:
        """A renewal was refused. That of an attempt which has ended meanwhile is no news."""
        if not self._ending:
            self._refused(error)

    def _refused(self, error: HeadgateError) -> None:
        if isinstance(error, Fenced):
            self._metrics.fenced()
        self.stop(Stop("refused", error=error))

    def _notice(self, standing: dict[str, Any]) -> None:
        if self._writer.refused is None:
            self._voice.say(EventType.BUDGET_THRESHOLD, payload=standing)

    def _time_left_s(self, past: Past) -> float:
        """What earlier attempts took is gone. What a pause took is not."""
        now = self._clock.time()
        gone_s = 0.0 if past.begun_ms is None else max(now - past.begun_ms / 1000, 0.0)
        limits = [self._job.step.timeout_s - gone_s]
        if self._job.run.deadline_ms is not None:
            limits.append(self._job.run.deadline_ms / 1000 - now)
        return max(0.0, min(limits))

    def _duration_ms(self) -> int:
        return round(self._clock.time() * 1000) - self._job.run.created_ms
