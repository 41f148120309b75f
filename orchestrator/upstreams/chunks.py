"""Chunks to pieces: what an OpenAI-compatible server's JSON means. Knows no socket and no event stream.

It evens out what servers do differently (where reasoning is, which tool a delta belongs to, what a finish is called, when usage
comes) and notes what is odd. It never invents: a tool call without an id stays one, arguments that do not parse go on as sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.nesting import MAX_DEPTH, json_nested_deeper
from orchestrator.upstreams.eventstream import event_data
from orchestrator.upstreams.toolcalls import ToolCalls
from orchestrator.upstreams.upstream import (
    Delta,
    Finish,
    Note,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    Usage,
)

MAX_BROKEN_LINES = 3
"""Broken lines that one answer may contain; two in a row are too many already."""

FINISHES: Mapping[str, str] = {
    **{name: name for name in ("stop", "length", "tool_calls", "content_filter", "function_call")},
    **dict.fromkeys(("eos", "eos_token", "end_turn", "stop_sequence", "end", "complete", "completed"), "stop"),
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length"), "length"),
    **dict.fromkeys(("tool_use", "tool_call"), "tool_calls"),
    **dict.fromkeys(("safety", "refusal", "content_filtered"), "content_filter"),
}
"""What servers call the end of a choice, in lower case, and what it is called here."""

_ABORTED = frozenset({"error", "abort", "aborted", "cancelled", "insufficient_system_resource"})
"""Finish reasons that say the answer is not whole: an error must never look like `stop`."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    def plain(self) -> Usage:
        prompt, completion = self.prompt_tokens or 0, self.completion_tokens or 0
        total = self.total_tokens if self.total_tokens is not None else prompt + completion
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None
        reasoning = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else None
        return Usage(prompt, completion, total, cached, reasoning)


class _Message(msgspec.Struct, gc=False):
    """A delta, or the message of a whole answer."""

    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode
_AT_LEAST_SO_LONG = 2 * MAX_DEPTH
"""What is nested too deeply: as many brackets, opened and closed."""

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _State:
    """What has been said of one choice."""

    __slots__ = ("finished", "started", "tools")

    def __init__(self) -> None:
        self.started = False
        self.finished = False
        self.tools: ToolCalls | None = None


class AnswerReader:
    """Folds the chunks of one answer. `done` says that `[DONE]` was read, `failure` why the answer cannot go on.

    Pieces that came before a failure are still returned, so a reader gives them away before it raises.
    """

    def __init__(self, reported: Callable[[bytes], UpstreamError], choices: int = 1) -> None:
        """`reported` turns a chunk that reports an error into the exception; `choices` is how many answers were asked for."""
        self.done = False
        self.failure: UpstreamError | None = None
        self._reported = reported
        self._choices = choices
        self._states: dict[int, _State] = {}
        self._usage: _Usage | None = None
        self._broken = 0
        self._broken_in_a_row = 0

    def read(self, events: Sequence[bytes]) -> list[Piece]:
        """The pieces that these events bring. Nothing after `[DONE]` or after a failure is looked at."""
        pieces: list[Piece] = []
        for data in events:
            try:
                chunk = _chunk(data)
            except _UNREADABLE:
                self._unreadable(data, pieces)
                if self.done or self.failure:
                    break
                continue
            self._broken_in_a_row = 0
            if not self._take(chunk, data, pieces):
                break
        return pieces

    def read_whole(self, data: bytes) -> list[Piece]:
        """The pieces of a `chat.completion`, the answer of a server that does not stream."""
        pieces: list[Piece] = []
        try:
            chunk = _chunk(data)
        except _UNREADABLE as error:
            raise UpstreamGarbled("The upstream's answer is not a chat completion.") from error
        if self._take(chunk, data, pieces) and not chunk.choices:
            self.failure = UpstreamGarbled("The upstream's answer has no choices.")
        if self.failure is None:
            self.done = True
            self._close(pieces)
        return pieces

    def end(self, rest: bytes = b"") -> list[Piece]:
        """The body ended after `rest`, which lacks its blank line. Raises UpstreamError if that was too early."""
        pieces: list[Piece] = []
        rest = rest.strip()
        if not self._states and rest[:1] == b"{":
            return self.read_whole(rest)
        data = event_data(rest)
        if data is not None and (data.strip() == b"[DONE]" or _is_chunk(data)):
            pieces += self.read([data])
        if self.done or self.failure is not None:
            return pieces
        if not self.finished:
            if rest and not self._states and data is None:
                raise UpstreamGarbled("The upstream's answer is not an event stream.")
            raise UpstreamCut
        pieces.append(Note("no_done"))
        self._close(pieces)
        return pieces

    @property
    def finished(self) -> bool:
        """Every choice that was asked for has said how it ended."""
        return len(self._states) >= self._choices and all(state.finished for state in self._states.values())

    def _take(self, chunk: _Chunk, data: bytes, pieces: list[Piece]) -> bool:
        if chunk.error or not chunk.choices:
            if chunk.error or chunk.object == "error" or isinstance(chunk.message, str):
                self.failure = self._reported(data)
                return False
            chunk.choices = []
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            state = self._states.get(choice.index)
            if state is None:
                state = self._states[choice.index] = _State()
            message = choice.delta or choice.message
            if message is not None:
                self._say(choice, message, state, pieces)
            if choice.finish_reason and not state.finished:
                self._finish(choice.index, choice.finish_reason, state, pieces)
        return self.failure is None

    def _say(self, choice: _Choice, message: _Message, state: _State, pieces: list[Piece]) -> None:
        content = message.content
        if state.started and content.__class__ is str and not state.finished and self._only_text(choice, message):
            pieces.append(Delta(choice.index, content))
            return
        deltas = list(_deltas(choice, message, state))
        if not state.started:
            deltas = [delta for delta in deltas if _says_something(delta)]
        elif state.finished:
            # Some servers repeat an empty delta beside usage. Anything more after the finish is odd, and still the answer.
            deltas = [delta for delta in deltas if _says_something(delta)]
            if deltas:
                pieces.append(Note("output_after_finish"))
        if deltas:
            state.started = True
            pieces.extend(deltas)

    @staticmethod
    def _only_text(choice: _Choice, message: _Message) -> bool:
        return (
            message.reasoning_content is None
            and message.reasoning is None
            and message.tool_calls is None
            and message.refusal is None
            and message.function_call is None
            and choice.logprobs is None
        )

    def _finish(self, index: int, reason: str, state: _State, pieces: list[Piece]) -> None:
        name = reason.lower()
        if name in _ABORTED:
            self.failure = UpstreamCut("The upstream gave up before its answer was complete.")
            return
        known = FINISHES.get(name)
        if known is None:
            pieces.append(Note("unknown_finish_reason"))
            known = "stop"
        if state.tools is not None and known == "stop":
            known = "tool_calls"
        state.finished = True
        pieces.append(Finish(index, known))

    def _unreadable(self, data: bytes, pieces: list[Piece]) -> None:
        text = data.strip()
        if text == b"[DONE]":
            self.done = True
            self._close(pieces)
        elif text:
            self._broken += 1
            self._broken_in_a_row += 1
            pieces.append(Note("broken_line"))
            if self._broken_in_a_row > 1 or self._broken > MAX_BROKEN_LINES:
                self.failure = UpstreamGarbled("The upstream's answer contains too many lines that are not JSON.")

    def _close(self, pieces: list[Piece]) -> None:
        if not self._states:
            self._states[0] = _State()
        for index, state in self._states.items():
            if not state.finished:
                pieces.append(Note("no_finish_reason"))
                self._finish(index, "stop", state, pieces)
        pieces.append(self._usage.plain() if self._usage is not None else Note("no_usage"))


def _chunk(data: bytes) -> _Chunk:
    """Raises one of `_UNREADABLE`."""
    chunk = _decode(data)
    if len(data) > _AT_LEAST_SO_LONG and json_nested_deeper(data):
        raise msgspec.DecodeError("it is nested too deeply to be passed on")
    return chunk


def _is_chunk(data: bytes) -> bool:
    """Whether the last line of a body is whole. A piece of one is no broken line: the body was cut."""
    try:
        _chunk(data)
    except _UNREADABLE:
        return False
    return True


def _deltas(choice: _Choice, message: _Message, state: _State) -> Iterator[Delta]:
    """One delta for text and everything beside it, then one for each tool call: clients expect one tool per chunk."""
    content, thought = _text_of(message.content)
    reasoning = message.reasoning_content or message.reasoning
    if reasoning is None:
        reasoning = message.reasoning_content if thought is None else thought
    function_call = {key: value for key, value in (message.function_call or {}).items() if value is not None}
    delta = Delta(
        choice.index,
        content,
        reasoning,
        message.refusal,
        None,
        choice.logprobs,
        function_call or None,
    )
    if delta != Delta(choice.index):
        yield delta
    if message.tool_calls:
        if state.tools is None:
            state.tools = ToolCalls()
        whole = choice.delta is None
        for position, sent in enumerate(message.tool_calls):
            if (call := state.tools.normal(sent, position if whole else None)) is not None:
                yield Delta(choice.index, tool_calls=[call])


def _text_of(content: str | list[dict[str, Any]] | None) -> tuple[str | None, str | None]:
    """Text and reasoning of content; some servers (Mistral) send a list of parts, thinking among them."""
    if not isinstance(content, list):
        return content, None
    text = [part["text"] for part in content if isinstance(part.get("text"), str)]
    thoughts = [_text_of(part["thinking"])[0] for part in content if isinstance(part.get("thinking"), list)]
    return ("".join(text) if text else None), ("".join(filter(None, thoughts)) if thoughts else None)


def _says_something(delta: Delta) -> bool:
    """More than the empty delta that many servers open and close with."""
    return bool(delta.content or delta.reasoning or delta.refusal or delta.tool_calls or delta.function_call or delta.logprobs)
