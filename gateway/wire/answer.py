"""An answer: what the run's answering agent says, folded from the log. The stream and the whole completion both read it here.

`fold` turns each entry into pieces: `Said` for everything the answer gains, `Unsaid` where it loses text again, and one
`Completed` or `Failed` at the end. Text comes from the deltas; a finished call (`LLM_OUTPUT`) supplies only what its deltas did
not say, which is everything when the log is read from the archive. What other agents say is not part of the answer, but their
tokens count. No bytes are made here, and no text is kept: a reader of a long answer costs a few counters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import msgspec

from gateway.errors import MalformedEvent, RunCancelled
from gateway.wire import answer_payloads as payloads
from gateway.wire.answer_choice import Choice, What
from gateway.wire.served import Served
from orchestrator.errors import Failure
from orchestrator.events import Entry, Event, EventType
from orchestrator.upstreams.upstream import Usage


class Said(msgspec.Struct, frozen=True, gc=False):
    """A choice goes on. `value` is text, one tool-call delta, or a function-call delta; `nothing` is for logprobs alone."""

    choice: int
    what: What | Literal["nothing"]
    value: Any
    logprobs: dict[str, Any] | None = None


class Unsaid(msgspec.Struct, frozen=True):
    """Content of this choice after `offset` characters is void; at 0 so is everything else it said."""

    choice: int
    offset: int


class Completed(msgspec.Struct, frozen=True):
    """The answer is whole: finish reasons and usage are final."""


class Failed(msgspec.Struct, frozen=True):
    """The answer will never be whole."""

    failure: Failure


Piece = Said | Unsaid | Completed | Failed

_TEXTS: tuple[Literal["reasoning", "content", "refusal"], ...] = ("reasoning", "content", "refusal")


class Answer:
    def __init__(self, agents: Collection[str]) -> None:
        self.choices: list[Choice] = []
        """All choices so far, by index, without holes: choice 2 is not heard of before 0 and 1."""
        self.usage = Usage()
        self.streamed = False
        """The log has deltas. An archived one has none."""
        self.served = Served()
        self._agents = agents
        self._counted = False
        self._finish_reason: str | None = None

    def fold(self, entry: Entry) -> list[Piece]:
        """What this entry adds. An event that cannot be read is an honest failure, not a crash and not a hole in the text."""
        event = entry.event
        try:
            return list(self._pieces(event))
        except msgspec.ValidationError as error:
            return [Failed(MalformedEvent(f"Event {entry.seq} ({event.type}) cannot be read: {error}.").failure())]

    def concerns(self, event: Event) -> bool:
        """Whether this event is told in the answer's own words, so that nobody needs to be told of it in another way."""
        match event.type:
            case EventType.LLM_PARTIAL | EventType.LLM_OUTPUT:
                return event.agent_id in self._agents
            case EventType.WORKFLOW_COMPLETED | EventType.WORKFLOW_FAILED | EventType.WORKFLOW_CANCELLED | EventType.STREAM_END:
                return True
            case _:
                return False

    def finish_reason(self, choice: Choice) -> str:
        """Why the choice ended, in OpenAI's vocabulary."""
        return choice.finish_reason(self._finish_reason)

    def choice(self, index: int) -> Choice:
        while len(self.choices) <= index:
            self.choices.append(Choice())
        return self.choices[index]

    def _pieces(self, event: Event) -> Iterator[Piece]:
        payload = event.payload or {}
        match event.type:
            case EventType.LLM_PARTIAL:
                if event.agent_id in self._agents:
                    self.streamed = True
                    if payload and not self.served.known:
                        self.served.by(payload)
                    yield from self._partial(event.message, msgspec.convert(payload, payloads.Partial))
            case EventType.LLM_OUTPUT:
                if (spent := payloads.usage(payload)) is not None:
                    self._counted, self.usage = True, self.usage.plus(spent)
                if event.agent_id in self._agents:
                    if not self.served.known:
                        self.served.by(payload)
                    for whole in payloads.wholes(event.message, payload):
                        yield from self._rest_of(whole)
            case EventType.AGENT_RETRYING if event.agent_id in self._agents:
                self.served.again()
            case EventType.OUTPUT_RESET:
                if event.agent_id in self._agents:
                    yield from self._reset(msgspec.convert(payload, payloads.Reset))
            case EventType.WORKFLOW_COMPLETED:
                yield from self._complete(payload)
            case EventType.WORKFLOW_FAILED:
                yield Failed(_failure(payload.get("error")))
            case EventType.WORKFLOW_CANCELLED:
                reason = payload.get("reason")
                yield Failed(RunCancelled(f"The run was cancelled: {reason}" if reason else None).failure())
            case EventType.STREAM_END:
                yield Failed(Failure(code="internal_error", message="The run's log ends without saying how the run ended."))
            case _:  # everything else is about the run, not part of the answer
                pass

    def _partial(self, message: str | None, partial: payloads.Partial) -> Iterator[Said]:
        index, choice = partial.choice, self.choice(partial.choice)
        texts = {"reasoning": partial.reasoning, "content": message, "refusal": partial.refusal}
        logprobs = choice.with_logprobs(partial.logprobs)
        for what in _TEXTS:
            if (text := texts[what]) is not None:
                choice.say(what, text)
                yield Said(index, what, text, None if what == "reasoning" else logprobs.take())
        if partial.function_call:
            yield Said(index, "function_call", choice.function_call_delta(partial.function_call))
        for position, call in enumerate(partial.tool_calls or ()):
            yield Said(index, "tool_calls", choice.tool_call_delta(call, position))
        if (left := logprobs.take()) is not None:
            yield Said(index, "nothing", None, left)

    def _rest_of(self, whole: payloads.Whole) -> Iterator[Said]:
        """What the deltas of this call did not say. A finish reason closes the call: the next one adds to the answer."""
        choice = self.choice(whole.index)
        if whole.offset is not None:
            choice.begin_at(whole.offset)
        yield from self._partial(
            choice.unsaid("content", whole.message),
            payloads.Partial(
                choice=whole.index,
                reasoning=choice.unsaid("reasoning", whole.reasoning),
                refusal=choice.unsaid("refusal", whole.refusal),
                function_call=None if choice.called_function else whole.function_call,
                tool_calls=None if choice.called_tools else whole.tool_calls,
                logprobs=None if choice.gave_logprobs else whole.logprobs,
            ),
        )
        if whole.finish_reason is not None:
            choice.close_call(whole.finish_reason)

    def _reset(self, reset: payloads.Reset) -> Iterator[Unsaid]:
        offset = reset.offset if self.streamed else max(reset.offset, reset.again)
        if reset.choice < len(self.choices) and self.choices[reset.choice].reset(offset):
            yield Unsaid(reset.choice, offset)

    def _complete(self, payload: Mapping[str, Any]) -> Iterator[Piece]:
        """A run that only has a result answers with it; and a choice without anything in it is the empty text."""
        result = msgspec.convert(payload, payloads.Result)
        self._finish_reason = result.finish_reason
        if not self._counted:
            self.usage = payloads.usage(payload) or self.usage
        if not any(choice.spoke or choice.content_chars for choice in self.choices):
            yield from self._partial(_text(result.result), payloads.Partial())
        for index, choice in enumerate(self.choices):
            if not choice.spoke:
                yield from self._partial("", payloads.Partial(choice=index))
        yield Completed()


def _text(result: object) -> str:
    if isinstance(result, str):
        return result
    return "" if result is None else msgspec.json.encode(result).decode()


def _failure(error: object) -> Failure:
    """The error of WORKFLOW_FAILED. Whoever wrote it, it becomes a failure with a status that is one."""
    try:
        failure = msgspec.convert(error, Failure)
    except msgspec.ValidationError:
        return Failure(code="run_failed", message="The run failed without saying why.")
    return failure if 400 <= failure.status <= 599 else msgspec.structs.replace(failure, status=500)
