"""What an agent and its upstream say to each other in one attempt, written to the log as it is said.

An upstream that fails mid-answer is asked again where policy allows it, and readers see one coherent answer all the same:
continued from where it broke off, or fitted onto what they have (see `splice.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from orchestrator.agents.call import UpstreamCall
from orchestrator.agents.history import Past
from orchestrator.agents.job import Job
from orchestrator.agents.splice import Reset, Splice
from orchestrator.agents.transcript import Transcript, payload_of
from orchestrator.agents.voice import Voice
from orchestrator.clock import Clock
from orchestrator.events import Event, EventType
from orchestrator.metrics import Metrics
from orchestrator.runs import RunState
from orchestrator.upstreams.decision import after_cut
from orchestrator.upstreams.errand import FailedTry, Hedged
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Delta, Finish, Note, Piece, UpstreamError, Usage

_PARTIAL = EventType.LLM_PARTIAL.value
"""Looking a member up costs more than making an event of it."""


class Conversation:
    """`hold` it once. `sent` is what readers have of the answer, `usage` what all calls so far have cost."""

    def __init__(self, job: Job, voice: Voice, *, router: Router, tokens: Tokenizer, metrics: Metrics, clock: Clock) -> None:
        self.sent = Transcript()
        self.usage: Usage | None = None
        self._job = job
        self._voice = voice
        self._writer = voice.writer
        self._router = router
        self._tokens = tokens
        self._metrics = metrics
        self._clock = clock
        self._until_s = clock.time() + job.step.timeout_s
        self._cut: str | None = None
        self._calls = 0
        self._call: UpstreamCall | None = None

    @property
    def continuable(self) -> bool:
        """Whether each of the upstreams can go on from what was said so far."""
        return self.sent.plain and self._may_continue and self._router.continues(self._job.step.upstream)

    @property
    def _may_continue(self) -> bool:
        return self._job.step.on_cut != "regenerate"

    async def hold(self, past: Past) -> None:
        """Say what remains to be said after `past`. Raises UpstreamError when policy says that a failure is final."""
        self.sent, self.usage = past.transcript, past.usage
        if past.attempts == 0:
            self._voice.say(EventType.AGENT_STARTED, state=RunState.RUNNING)
        elif not past.resumed:
            self._metrics.takeover()
            await self._report_lost(past.unreported)
            retry = {"attempt": self._job.attempt, "error": "worker_lost", "delay_s": 0}
            self._voice.say(EventType.AGENT_RETRYING, payload=retry)
        if past.output is not None:
            self.sent.finish(0, (past.output.payload or {}).get("finish_reason", "stop"))
            return
        while True:
            try:
                await self._answer()
                break
            except UpstreamError as error:
                await self._again(error)
        if self._call is not None:
            await self._say_output(self._call, aborted=False)

    async def break_off(self, *, final: bool) -> None:
        """Say what the call that is open has cost, and, where no other follows, what it said."""
        if self._call is not None:
            await self._say_output(self._call, aborted=True, final=final)

    async def _report_lost(self, said: Transcript) -> None:
        """The call of a lost attempt was paid for as well; what it said is what can be known of it."""
        if not said.empty:
            call = UpstreamCall(f"{self._job.writer}-{self._job.attempt - 1}-lost", self._clock.time())
            call.usage = await self._tokens.usage(self._model, self._job.request.body, said.all_text())
            await self._say_output(call, aborted=True)

    async def _again(self, error: UpstreamError) -> None:
        """Prepare another call after one that broke off, or raise `error` when policy says that it is final."""
        self._metrics.upstream_error(error.kind)
        step = self._job.step
        delay_s = after_cut(
            error,
            calls=self._calls,
            attempts=step.attempts,
            retry=step.route.retry,
            time_left_s=self._until_s - self._clock.time(),
        )
        if self.sent.empty or step.on_cut == "fail" or delay_s is None:
            raise error
        self._cut = self._call.upstream if self._call is not None else None
        await self.break_off(final=False)
        self._retrying(self._calls + 1, error, delay_s, {} if self._cut is None else {"upstream": self._cut})
        await asyncio.sleep(delay_s)

    async def _answer(self) -> None:
        """One upstream call, from where the answer stands: whoever answers it goes on from there, or else begins anew."""
        step, sent = self._job.step, self.sent
        prefix = sent.text if sent.plain and self._may_continue else ""
        self._calls += 1
        call_id = f"{self._job.writer}-{self._job.attempt}-{self._calls}"
        call = self._call = UpstreamCall(call_id, self._clock.time(), len(sent.all_text()))
        asking = self._router.ask(
            step.upstream, self._job.call(prefix), self._told, route=step.route, until_s=self._until_s, after=self._cut
        )
        async with asking as answer:
            call.answered(answer.upstream, beside=answer.lost, given_chars=len(prefix) if answer.continued else 0)
            splice = None if answer.continued or sent.empty else Splice(sent)
            said = sent if splice is None else Transcript()
            async for pieces in answer:
                self._say(pieces, said, splice, call)
                if self._writer.full:
                    await self._writer.room()
        if splice is not None:
            self._writer.emit(*self._fitted(splice.end(), self._voice.at.now()))
            self.sent = said

    def _say(self, pieces: Sequence[Piece], said: Transcript, splice: Splice | None, call: UpstreamCall) -> None:
        """Everything that one read of the upstream brought, in one go and at one time."""
        events: list[Event] = []
        at = self._voice.at.now()
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
                self.sent.choices[part.choice].cut(part.offset)
            else:
                self.sent.add(part)
        return [self._event(part, at) for part in parts]

    def _event(self, part: Delta | Reset, at: str) -> Event:
        if type(part) is Delta:
            return Event(_PARTIAL, at, self._voice.agent_id, part.content, payload_of(part))
        assert isinstance(part, Reset)
        payload = {
            "offset": part.offset,
            "reason": "the answer was generated again and differs",
            "attempt": self._job.attempt,
            **({"choice": part.choice} if part.choice else {}),
        }
        return Event(EventType.OUTPUT_RESET, at, self._voice.agent_id, payload=payload)

    def _first(self, call: UpstreamCall) -> None:
        call.first_at = self._clock.time()
        if self._calls == 1 and self._job.attempt == 1 and self._job.step.name == self._job.run.answers:
            self._metrics.first_token(call.first_at - self._job.run.created_ms / 1000)

    def _note(self, piece: Piece, said: Transcript, call: UpstreamCall) -> None:
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

    async def _told(self, what: FailedTry | Hedged) -> None:
        """What happens before anything is said. When no other try follows a failed one, the error itself arrives next."""
        call = self._call
        assert call is not None
        if isinstance(what, Hedged):
            call.hedged, call.beside = True, what.second
            return
        call.beside = None
        if what.next_upstream is not None:
            self._metrics.upstream_error(what.error.kind)
            names = {"upstream": what.upstream, "next_upstream": what.next_upstream}
            self._retrying(what.attempt, what.error, what.delay_s, names)

    def _retrying(self, attempt: int, error: UpstreamError, delay_s: float, names: Mapping[str, str]) -> None:
        payload = {"attempt": attempt, "error": error.code, "delay_s": round(delay_s, 3), **names}
        self._voice.say(EventType.AGENT_RETRYING, payload=payload)

    async def _say_output(self, call: UpstreamCall, *, aborted: bool, final: bool = False) -> None:
        """`LLM_OUTPUT`: what one call brought. A call that is repeated reports its usage only, the text is said by the next."""
        if call.usage is None:
            own = self.sent.all_text()[call.given_chars :]
            call.usage = await self._tokens.usage(self._model, self._job.request.body, own)
        if (other := call.other()) is not None:
            await self._say_output(other, aborted=True)
        self.usage = call.usage if self.usage is None else self.usage.plus(call.usage)
        told = not aborted or final
        said = self.sent.output() if told else {}
        payload = call.output(self._model, said, call.usage, self._clock.time(), aborted=aborted)
        self._voice.say(EventType.LLM_OUTPUT, message=self.sent.text if told else None, payload=payload)
        self._call = None

    @property
    def _model(self) -> str:
        return self._job.step.model or self._job.request.upstream_model
