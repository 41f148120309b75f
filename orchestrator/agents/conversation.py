"""What an agent and its upstream say to each other in one attempt, written to the log as it is said.

A model that calls tools of ours is told what they answered and asked again, turn by turn, until it answers or calls what only
the client can. An upstream that fails mid-answer is asked again where policy allows it. Readers see one coherent answer all the
same (`speech.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.agents.call import UpstreamCall
from orchestrator.agents.expenses import Expenses
from orchestrator.agents.history import Past
from orchestrator.agents.job import Job
from orchestrator.agents.outputs import goes_on
from orchestrator.agents.own_calls import OwnCalls
from orchestrator.agents.speech import Speech
from orchestrator.agents.tool_work import ToolWork
from orchestrator.agents.transcript import Transcript
from orchestrator.agents.turn import TooManyTurns, Turn, with_turns
from orchestrator.agents.voice import Voice
from orchestrator.clock import Clock
from orchestrator.events import EventType
from orchestrator.metrics import Metrics
from orchestrator.runs import RunState
from orchestrator.tools.registry import Tools
from orchestrator.tools.toolbox import Toolbox
from orchestrator.upstreams.decision import after_cut
from orchestrator.upstreams.errand import FailedTry, Hedged
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import UpstreamError, Usage


class Paused(Exception):
    """The conversation stands where a later attempt can go on, as it was asked to."""


class Conversation:
    """`hold` it once. `usage` is what all calls so far have cost."""

    def __init__(
        self,
        job: Job,
        voice: Voice,
        *,
        router: Router,
        tools: Tools,
        tokens: Tokenizer,
        expenses: Expenses,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self._job = job
        self._voice = voice
        self._writer = voice.writer
        self._router = router
        self._tools = tools
        self._tokens = tokens
        self._expenses = expenses
        self._metrics = metrics
        self._clock = clock
        self._until_s = math.inf
        self._cut: str | None = None
        self._calls = self._tries = 0
        self._call: UpstreamCall | None = None
        self._speech = Speech(voice, job.attempt, metrics, self._first)
        self._toolbox = Toolbox()
        self._work: ToolWork | None = None
        self._pausing = False

    @property
    def text(self) -> str:
        """The answer as readers have it, choice 0's."""
        return self._speech.sent.text

    def pause(self) -> bool:
        """Whether a later attempt can go on from just here. Otherwise `hold` raises Paused before the next turn, if one comes."""
        if self._call is not None or self._work is None:
            breakable = self._plain and self._router.continues(self._job.step.upstream)
        else:
            breakable = self._work.repeatable
        self._pausing = not breakable
        return breakable

    async def hold(self, past: Past, until_s: float) -> None:
        """Say what remains to be said after `past`, without a wait that goes beyond `until_s`.

        Raises UpstreamError when policy says that a failure is final, ToolUnavailable, TooManyTurns, and Paused.
        """
        self._until_s = until_s
        self.usage = past.usage
        self._speech.take_up(past)
        if past.attempts == 0:
            self._voice.say(EventType.AGENT_STARTED, state=RunState.RUNNING)
        elif not past.resumed:
            self._metrics.takeover()
            await self._report_lost(past.unreported)
            retry = {"attempt": past.attempts + 1, "error": "worker_lost", "delay_s": 0}
            self._voice.say(EventType.AGENT_RETRYING, payload=retry)
        if past.output is not None:
            self.finish_reason = (past.output.payload or {}).get("finish_reason")
            return
        step = self._job.step
        if step.tools:
            self._toolbox = await self._tools.offer(step.tools, step.tool_timeout_s)
            self._work = ToolWork(self._toolbox, self._voice, self._tools.redactor, self._metrics, self._clock)
            await self._finish_turn()
        while (turn := await self._reply()) is not None:
            self._speech.next_turn(turn)
            self._tries, self._cut = 0, None
            await self._finish_turn()

    async def _finish_turn(self) -> None:
        """See to it that the last turn's calls have results, unless the conversation is to end or to stand still."""
        if self._work is None or not self._speech.turns:
            return
        if len(self._speech.turns) >= self._job.step.max_turns:
            raise TooManyTurns
        if self._pausing:
            raise Paused
        await self._work.finish(self._speech.turns[-1])
        if self._pausing:
            raise Paused

    async def _reply(self) -> Turn | None:
        """What the upstream says to all that; None if it was the answer."""
        while True:
            try:
                call = await self._answer()
                break
            except UpstreamError as error:
                await self._again(error)
        own = call.own.calls() if call.own is not None else []
        spoken = self._speech.spoken
        facts = await self._say_output(call, aborted=False)
        if goes_on(facts) and self._expenses.exceeded is None:
            return Turn(own, spoken.text, reasoning=facts.get("reasoning"), refusal=facts.get("refusal"))
        self.finish_reason = facts.get("finish_reason")
        if self._work is not None:
            self._work.refuse(own)
        return None

    async def break_off(self, *, final: bool) -> None:
        """Say what the call that is open has cost, and, where no other follows, what it said and that its tools are given up."""
        if final and self._work is not None:
            self._work.drop()
        if self._call is not None:
            await self._say_output(self._call, aborted=True, final=final)

    async def cut_short(self) -> None:
        """Nothing is left to pay for more: what was said so far is the answer."""
        self.finish_reason = "length"
        if self._work is not None:
            self._work.drop()
        call = self._call
        if call is None:
            self._expenses.tell()
            return
        self._speech.cut(self.finish_reason)
        if call.usage is None and self._expenses.meter is not None:
            call.usage = self._expenses.meter.usage
        await self._say_output(call, aborted=False)
        if self._work is not None and call.own is not None:
            self._work.refuse(call.own.calls())

    @property
    def spoke(self) -> bool:
        """Whether the turn that goes on has said anything, or tools are at work for the last one."""
        busy = self._work is not None and self._work.busy
        return not self._speech.spoken.empty or self._calls_tools or busy

    @property
    def _calls_tools(self) -> bool:
        return self._call is not None and self._call.own is not None and self._call.own.begun

    @property
    def _plain(self) -> bool:
        """Whether an upstream that can may go on from what the turn has said."""
        return self._speech.plain and not self._calls_tools and self._job.step.on_cut != "regenerate"

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
            calls=self._tries,
            attempts=step.attempts,
            retry=step.route.retry,
            time_left_s=self._until_s - self._clock.time(),
        )
        if not self.spoke:
            await self._expenses.end(Usage())
        if not self.spoke or step.on_cut == "fail" or delay_s is None:
            raise error
        self._cut = self._call.upstream if self._call is not None else None
        await self.break_off(final=False)
        self._retrying(self._calls + 1, error, delay_s, {} if self._cut is None else {"upstream": self._cut})
        await asyncio.sleep(delay_s)

    async def _answer(self) -> UpstreamCall:
        """One upstream call, from where the answer stands: whoever answers it goes on from there, or else begins anew."""
        step, speech = self._job.step, self._speech
        prefix = speech.spoken.text if self._plain else ""
        self._calls, self._tries = self._calls + 1, self._tries + 1
        call_id = f"{self._job.writer}-{self._job.attempt}-{self._calls}"
        call = UpstreamCall(call_id, self._clock.time(), len(speech.spoken.all_text()))
        asked, meter = self._job.call(prefix), self._expenses.meter
        if self._toolbox:
            theirs = bool(asked.body.get("tools") or asked.body.get("functions"))
            asked = msgspec.structs.replace(asked, body=with_turns(asked.body, self._toolbox.offered, speech.turns))
            call.own = OwnCalls(self._toolbox if theirs else None)
        asked = await self._expenses.begin(asked)
        call.body, self._call = asked.body, call
        route = step.route
        if route.hedge is not None and not await self._expenses.twice():
            route = route.model_copy(update={"hedge": None})
        asking = self._router.ask(step.upstream, asked, self._told, route=route, until_s=self._until_s, after=self._cut)
        async with asking as answer:
            call.answered(answer, len(prefix))
            if answer.lost is None:
                self._expenses.once()
            speech.listen(continued=answer.continued)
            async for pieces in answer:
                if meter is not None and not meter.covers(pieces):
                    pieces = await meter.afford(pieces)
                speech.say(pieces, call)
                if self._writer.full:
                    await self._writer.room()
        reasons = speech.end()
        if meter is not None:
            meter.stopped(reasons)
        return call

    def _first(self, call: UpstreamCall) -> None:
        call.first_at = self._clock.time()
        if self._calls == 1 and self._job.attempt == 1 and self._job.step.name in self._job.run.answers:
            self._metrics.first_token(call.first_at - self._job.run.created_ms / 1000)

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

    async def _say_output(self, call: UpstreamCall, *, aborted: bool, final: bool = False) -> dict[str, Any]:
        """`LLM_OUTPUT`: what one call brought. A call that is repeated reports its usage only, the text is said by the next."""
        spoken = self._speech.spoken
        if call.usage is None:
            own = spoken.all_text()[call.given_chars :] + (call.own.text() if call.own is not None else "")
            call.usage = await self._tokens.usage(self._model, call.body or self._job.request.body, own)
        other = call.other()
        await self._expenses.end(call.usage if other is None or other.usage is None else call.usage.plus(other.usage))
        if other is not None:
            await self._say_output(other, aborted=True)
        self.usage = call.usage if self.usage is None else self.usage.plus(call.usage)
        told = not aborted or final
        said = spoken.output() if told else {}
        if told and self._speech.offset is not None:
            said["offset"] = self._speech.offset
        if not aborted and call.own is not None and (calls := call.own.calls()):
            said["server_tool_calls"] = [own_call.logged(self._tools.redactor) for own_call in calls]
        payload = call.output(self._model, said, call.usage, self._clock.time(), aborted=aborted)
        self._voice.say(EventType.LLM_OUTPUT, message=spoken.text if told else None, payload=payload)
        self._call = None
        self._expenses.tell()
        return payload

    @property
    def _model(self) -> str:
        return self._job.step.model or self._job.request.upstream_model
