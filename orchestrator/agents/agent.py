"""One attempt at an agent step: the conversation with the upstream, written to the log as it happens.

Whatever happens is said truly. The answer is complete: `LLM_OUTPUT`, and, when the step is final, the run's ending in the same
append. The upstream fails: policy decides between another call and `AGENT_FAILED`. Somebody cancels: the upstream's socket is
closed, then the usage so far and the ending are written. The process goes down: the writer's lease is given back, no ending.
A later attempt reads what is in the log and goes on from there; see `splice.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator import endings
from orchestrator.agents.history import Past, asked_to_stop
from orchestrator.agents.job import Interrupted, Job, Stop
from orchestrator.agents.splice import Reset, Splice
from orchestrator.agents.transcript import Transcript, payload_of
from orchestrator.clock import Clock
from orchestrator.errors import Failure, HeadgateError, LogRefused
from orchestrator.events import Event, EventType, Timestamps
from orchestrator.metrics import Metrics
from orchestrator.plans.interpreter import StepResult
from orchestrator.runs import RunState
from orchestrator.streamlog.log import Fenced, Log, LogUnavailable
from orchestrator.streamlog.writer import EventWriter
from orchestrator.upstreams.routing import FailedTry, Router
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Delta, Finish, Note, Piece, UpstreamError, Usage

_log = logging.getLogger(__name__)

_PARTIAL = EventType.LLM_PARTIAL.value
"""Looking a member up costs more than making an event of it."""


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
        tokens: Tokenizer,
        metrics: Metrics,
        clock: Clock,
        timestamps: Timestamps,
        cancelled: Callable[[], Stop],
        buffer_bytes: int,
    ) -> None:
        self._job = job
        self._cancelled = cancelled
        self._ending = False
        self._renewed_at = 0.0
        self._log = log
        self._router = router
        self._tokens = tokens
        self._metrics = metrics
        self._clock = clock
        self._at = timestamps
        self._task: asyncio.Task[Any] | None = None
        self._stop: Stop | None = None
        self._usage: Usage | None = None
        self._calls = 0
        self._call: _Call | None = None
        self._sent = Transcript()
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

    def stop(self, stop: Stop) -> None:
        """End the attempt; the first reason counts."""
        if self._stop is None:
            self._stop = stop
            if self._task is not None:
                self._task.cancel()

    def pause(self) -> bool:
        """Break off so that a later attempt goes on from here. False where the upstream could not: it is then finished."""
        if not self._continuable:
            return False
        self.stop(Stop("paused"))
        return True

    async def run(self, past: Past) -> StepResult:
        """Say what remains to be said after `past`. Raises what the log refused it with, and Interrupted on shutdown."""
        self._task = asyncio.current_task()
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._time_left_s(), self.stop, Stop("deadline"))
        try:
            if self._stop is not None:
                raise asyncio.CancelledError
            return await self._converse(past)
        except asyncio.CancelledError:
            if self._task is not None:
                self._task.uncancel()
            self._stop = self._stop or self._cancelled()
            return await self._stopped(self._stop)
        except HeadgateError as error:
            if error is self._writer.refused:
                raise
            return await self._failed(error.failure())
        finally:
            deadline.cancel()
            self._task = None

    # -- the conversation ------------------------------------------------------------------------------------------------

    async def _converse(self, past: Past) -> StepResult:
        self._sent = past.transcript
        self._usage = past.usage
        if past.attempts == 0:
            self._emit(EventType.AGENT_STARTED, state=RunState.RUNNING)
        elif not past.resumed:
            self._metrics.takeover()
            await self._report_lost(past.unreported)
            self._emit(EventType.AGENT_RETRYING, payload={"attempt": self._job.attempt, "error": "worker_lost", "delay_s": 0})
        while past.output is None:
            try:
                await self._answer()
                break
            except UpstreamError as error:
                await self._again(error)
        return await self._completed(past.output)

    async def _report_lost(self, said: Transcript) -> None:
        """The call of a lost attempt was paid for as well; what it said is what can be known of it."""
        if not said.empty:
            call = _Call(f"{self._job.writer}-{self._job.attempt - 1}-lost", self._clock.time())
            call.usage = await self._tokens.usage(self._model, self._job.request.body, said.all_text())
            await self._say_output(call, aborted=True)

    async def _again(self, error: UpstreamError) -> None:
        """Prepare another call after one that broke off, or raise `error` when policy says that it is final."""
        self._metrics.upstream_error(error.kind)
        step = self._job.step
        mid_answer = not self._sent.empty
        if not mid_answer or step.on_cut == "fail" or not error.retryable or self._calls >= step.attempts:
            raise error
        if self._call is not None:
            await self._say_output(self._call, aborted=True)
        self._emit(EventType.AGENT_RETRYING, payload={"attempt": self._calls + 1, "error": error.code, "delay_s": 0})

    async def _answer(self) -> None:
        """One upstream call, from where the answer stands."""
        continues = self._continuable
        prefix = self._sent.text if continues else ""
        splice = None if continues or self._sent.empty else Splice(self._sent)
        self._calls += 1
        call = self._call = _Call(f"{self._job.writer}-{self._job.attempt}-{self._calls}", self._clock.time(), len(prefix))
        said = self._sent if splice is None else Transcript()
        async with self._router.ask(self._job.step.upstream, self._job.call(prefix), self._tried) as answer:
            call.upstream = answer.upstream
            async for pieces in answer:
                self._say(pieces, said, splice, call)
                if self._writer.full:
                    await self._writer.room()
        if splice is not None:
            self._writer.emit(*self._fitted(splice.end(), self._at.now()))
            self._sent = said

    def _say(self, pieces: Sequence[Piece], said: Transcript, splice: Splice | None, call: _Call) -> None:
        """Everything that one read of the upstream brought, in one go and at one time."""
        events: list[Event] = []
        at = self._at.now()
        for piece in pieces:
            if type(piece) is not Delta:
                self._note(piece, said, call)
                continue
            said.add(piece)
            if splice is None:
                events.append(self._event(piece, at))
            else:
                events += self._fitted(splice.feed(piece), at)
        if events:
            if call.first_at is None:
                self._first(call)
            self._writer.emit(*events)

    def _fitted(self, parts: Sequence[Delta | Reset], at: str) -> list[Event]:
        """What readers are told of an answer that is generated again. It is what was sent, should this call break off too."""
        for part in parts:
            if isinstance(part, Reset):
                self._sent.choices[part.choice].cut(part.offset)
            else:
                self._sent.add(part)
        return [self._event(part, at) for part in parts]

    def _event(self, part: Delta | Reset, at: str) -> Event:
        if type(part) is Delta:
            return Event(_PARTIAL, at, self._job.step.name, part.content, payload_of(part))
        assert isinstance(part, Reset)
        payload = {
            "offset": part.offset,
            "reason": "the answer was generated again and differs",
            "attempt": self._job.attempt,
            **({"choice": part.choice} if part.choice else {}),
        }
        return Event(EventType.OUTPUT_RESET, at, self._job.step.name, payload=payload)

    def _first(self, call: _Call) -> None:
        call.first_at = self._clock.time()
        if self._calls == 1 and self._job.attempt == 1 and self._job.step.name == self._job.run.answers:
            self._metrics.first_token(call.first_at - self._job.run.created_ms / 1000)

    def _note(self, piece: Piece, said: Transcript, call: _Call) -> None:
        match piece:
            case Finish(choice, reason):
                said.finish(choice, reason)
            case Usage():
                call.usage = piece
            case Note(what):
                call.notes.append(what)
                self._metrics.upstream_note(what)
            case Delta():
                raise AssertionError("deltas are said, not noted")

    async def _tried(self, failed: FailedTry) -> None:
        """A try that failed before anything was said. When no other follows, the error itself arrives next."""
        if failed.next_upstream is None:
            return
        self._metrics.upstream_error(failed.error.kind)
        self._emit(
            EventType.AGENT_RETRYING,
            payload={"attempt": failed.attempt, "error": failed.error.code, "delay_s": round(failed.delay_s, 3)},
        )

    # -- endings ---------------------------------------------------------------------------------------------------------

    async def _completed(self, output: Event | None) -> StepResult:
        """`output` is the `LLM_OUTPUT` that an earlier attempt had said already."""
        if output is not None and output.payload is not None:
            usage = self._usage or Usage()
            self._sent.finish(0, output.payload.get("finish_reason", "stop"))
        else:
            assert self._call is not None
            usage = await self._say_output(self._call, aborted=False)
        self._emit(EventType.AGENT_COMPLETED)
        result = StepResult(RunState.COMPLETED, ended=self._job.final)
        if not self._job.final:
            await self._writer.flush()
            return result
        finish_reason = self._sent.choices[0].finish_reason if 0 in self._sent.choices else None
        ending = endings.completed(
            self._at.now(),
            text=self._sent.text,
            usage=usage.facts(),
            finish_reason=finish_reason or "stop",
            duration_ms=self._duration_ms(),
        )
        await self._end(ending, RunState.COMPLETED)
        return result

    async def _failed(self, failure: Failure) -> StepResult:
        if self._call is not None and not self._sent.empty:
            await self._say_output(self._call, aborted=True, final=True)
        self._emit(EventType.AGENT_FAILED, payload={"error": {"code": failure.code, "message": failure.message}})
        state = RunState.TIMEOUT if failure.code == endings.TIMEOUT.code else RunState.FAILED
        if self._job.final:
            await self._end(endings.failed(self._at.now(), failure, self._spent()), state)
        else:
            await self._writer.flush()
        return StepResult(state, ended=self._job.final, failure=failure)

    async def _stopped(self, stop: Stop) -> StepResult:
        match stop.kind:
            case "cancelled":
                if stop.reason is None and stop.by is None:
                    stop = await self._as_asked(stop)
                if self._call is not None:
                    await self._say_output(self._call, aborted=True, final=True)
                if self._job.final:
                    ending = endings.cancelled(self._at.now(), stop.reason, stop.by, self._spent())
                    await self._end(ending, RunState.CANCELLED)
                else:
                    await self._writer.flush()
                return StepResult(RunState.CANCELLED, ended=self._job.final, reason=stop.reason)
            case "deadline":
                return await self._failed(endings.TIMEOUT)
            case "shutdown":
                await self._writer.abandon()
                await self._release()
                raise Interrupted
            case "refused":
                await self._writer.abandon()
                raise stop.error or Interrupted()
            case "paused":
                if self._call is not None:
                    await self._say_output(self._call, aborted=True)
                await self._writer.flush()
                await self._release()
                return StepResult(RunState.PAUSED, ended=False)

    def _spent(self) -> dict[str, Any] | None:
        """What all calls so far used, for an ending that is not a completion."""
        return None if self._usage is None else self._usage.facts()

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

    async def _say_output(self, call: _Call, *, aborted: bool, final: bool = False) -> Usage:
        """`LLM_OUTPUT`: what one call brought. A call that is repeated reports its usage only, the text is said by the next."""
        if call.usage is None:
            own = self._sent.all_text()[call.given_chars :]
            call.usage = await self._tokens.usage(self._model, self._job.request.body, own)
        usage = call.usage
        self._usage = usage if self._usage is None else self._usage.plus(usage)
        now = self._clock.time()
        payload: dict[str, Any] = {
            "call_id": call.id,
            "model": self._model,
            "upstream": call.upstream,
            **({} if aborted and not final else self._sent.output()),
            "usage": usage.facts(),
            "duration_ms": round((now - call.started_at) * 1000),
        }
        if call.first_at is not None:
            payload["ttft_ms"] = round((call.first_at - call.started_at) * 1000)
        if aborted:
            payload["aborted"] = True
        if call.notes:
            payload["notes"] = call.notes
        self._emit(EventType.LLM_OUTPUT, message=None if aborted and not final else self._sent.text, payload=payload)
        self._call = None
        return self._usage

    # -- keeping the lease -----------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the lease needs renewing: a third of it has gone by since the log last heard of this attempt."""
        silent_s = self._clock.time() - max(self._writer.appended_at, self._renewed_at)
        return self._task is not None and not self._ending and silent_s >= self._job.lease_ms / 3000

    async def renew(self) -> None:
        """Keep the writer while the upstream is silent; also how an attempt learns that it was replaced or its log is gone."""
        job = self._job
        now = self._clock.time()
        try:
            await self._log.claim(job.run.id, job.writer, job.attempt, job.lease_ms)
            self._renewed_at = now
        except LogUnavailable as error:
            _log.warning("renewing a lease failed: %s", error)
        except LogRefused as error:
            if not self._ending:
                self._refused(error)

    async def _release(self) -> None:
        try:
            await self._log.claim(self._job.run.id, self._job.writer, self._job.attempt, 0)
        except HeadgateError as error:
            _log.info("the lease was not released, it lapses by itself: %s", error)

    def _refused(self, error: HeadgateError) -> None:
        if isinstance(error, Fenced):
            self._metrics.fenced()
        self.stop(Stop("refused", error=error))

    def _emit(
        self,
        event_type: EventType,
        *,
        message: str | None = None,
        payload: dict[str, Any] | None = None,
        state: RunState | None = None,
    ) -> None:
        self._writer.emit(Event(event_type, self._at.now(), self._job.step.name, message, payload), state=state)

    @property
    def _continuable(self) -> bool:
        """Whether the upstream can go on from what was said so far."""
        step = self._job.step
        return self._sent.plain and step.on_cut != "regenerate" and self._router.continues(step.upstream)

    @property
    def _model(self) -> str:
        return self._job.step.model or self._job.request.upstream_model

    def _time_left_s(self) -> float:
        limits = [self._job.step.timeout_s]
        if self._job.run.deadline_ms is not None:
            limits.append(self._job.run.deadline_ms / 1000 - self._clock.time())
        return max(0.0, min(limits))

    def _duration_ms(self) -> int:
        return round(self._clock.time() * 1000) - self._job.run.created_ms


class _Call:
    """One upstream call as it goes. It was given `given_chars` of the answer to continue from, which are not its own."""

    def __init__(self, call_id: str, started_at: float, given_chars: int = 0) -> None:
        self.id = call_id
        self.started_at = started_at
        self.given_chars = given_chars
        self.first_at: float | None = None
        self.upstream: str | None = None
        self.usage: Usage | None = None
        self.notes: list[str] = []
