"""Playing a script: from a request to the things that happen, in order. No I/O and no clock; both performers obey it.

`ScriptedUpstream` performs the actions as pieces, `ScriptedServer` as bytes on a socket. The same call always plays the same
way, so an answer asked for again agrees with what was sent of the first.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.instances import smallest
from orchestrator.upstreams.script import (
    Blank,
    Broken,
    CallTool,
    Cut,
    First,
    Garbage,
    Line,
    Manner,
    Rate,
    Repeat,
    Say,
    Script,
    Seed,
    Statement,
    Status,
    Tokens,
    Wait,
    is_script,
    parse,
)
from orchestrator.upstreams.script import Finish as FinishAs
from orchestrator.upstreams.upstream import Delta, Finish, Usage

Fault = Status | Cut | Broken | Garbage | Line | Blank
Action = Delta | Finish | Usage | Wait | Fault

_PIECE = re.compile(r"\s*\S+|\s+")
_WORDS = re.findall(
    r"\w+",
    "a stream is a promise kept one word at a time and every word has its place in the log so that nobody who looks away for a "
    "moment has to ask what was said before",
)
_ARGUMENT_CHARS = 12
_QUOTED_WORDS = 12
_LONGEST_STOP = 1000
_MAX_STEPS = 2_000_000
"""Statements and pieces of one play. A script that goes on and on, aloud or not, ends as a model does: at its length."""

_STEPS_AT_A_TIME = 1000
"""So many statements without output, and the performer gets a chance to look around."""


def script_for(body: Mapping[str, Any], configured: str | None, rate: float) -> Script:
    """What to play for a request: the script in its prompt, else the configured one, else the demo answer."""
    prompt = prompt_of(body)
    if is_script(prompt):
        return parse(prompt)
    if configured is not None:
        return parse(configured)
    return Script(((Rate(rate), *_demo(body, prompt)),))


def prompt_of(body: Mapping[str, Any]) -> str:
    """The text of the last user message."""
    for message in reversed(_messages(body)):
        if message.get("role") == "user":
            return _text(message)
    return ""


class Play:
    """One performance of a script."""

    def __init__(self, script: Script, body: Mapping[str, Any], *, earlier_calls: int = 0, prefix: str = "") -> None:
        """`earlier_calls` with the same prompt decide what `once` skips; `prefix` is text that the reader has already.

        Whoever has a prefix has called before, maybe in another process, where nobody counts for us.
        """
        self.manner: Manner = script.manner
        self._body = body
        self._earlier_calls = max(earlier_calls, 1) if prefix else earlier_calls
        self._statements = _turn(script, body)
        self._choices = range(script.manner.choices or _asked_choices(body))
        self._limit = None if "limit" in script.manner.without else _limit(body)
        self._stops = _stops(body)
        self._skip = len(prefix)
        self._replaying = bool(prefix)
        self._pause = 0.0
        self._seed = 0
        self._text = ""
        self._written = 0
        self._said = 0
        self._steps = 0
        self._calls = 0
        self._reason: str | None = None

    def actions(self) -> Iterator[Action]:
        """Everything that happens, finishes and usage included; a performer leaves out what `manner.without` says."""
        yield from self._perform(self._statements)
        reason = self._reason or ("tool_calls" if self._calls else "stop")
        yield from (Finish(choice, reason) for choice in self._choices)
        yield self._usage()

    def _perform(self, statements: Sequence[Statement]) -> Iterator[Action]:
        for statement in statements:
            if self._reason is not None:
                return
            yield from self._step()
            yield from self._one(statement)

    def _step(self) -> Iterator[Action]:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            self._reason = "length"
        elif self._steps % _STEPS_AT_A_TIME == 0:
            yield Wait(0.0)

    def _one(self, statement: Statement) -> Iterator[Action]:
        match statement:
            case Say():
                yield from self._pieces(_PIECE.findall(self._wording(statement)), statement.to)
            case Tokens():
                yield from self._pieces(statement.pieces, "content")
            case CallTool():
                yield from self._call(statement)
            case Rate():
                self._pause = 0.0 if math.isinf(statement.per_s) else 1 / statement.per_s
            case Seed():
                self._seed = statement.seed
            case FinishAs():
                self._reason = statement.reason
            case First():
                if self._earlier_calls < statement.calls:
                    yield from self._one(statement.statement)
            case Repeat():
                yield from self._repeat(statement)
            case Wait():
                # A silence behind the prefix may not be over: a run that was paused in it, or lost its worker, is in it again.
                if not self._skip:
                    yield statement
            case Status() | Cut() | Broken() | Garbage() | Line() | Blank():
                # Up to the first new text, a continued answer is in its past: what went wrong there went wrong already.
                if not self._replaying:
                    yield statement

    def _wording(self, say: Say) -> str:
        if say.results:
            return _tool_result(self._body)
        return made_up(say.words, self._seed) if say.text is None else say.text

    def _repeat(self, statement: Repeat) -> Iterator[Action]:
        done = 0
        while self._reason is None and (statement.times is None or done < statement.times):
            yield from self._step()
            yield from self._perform(statement.body)
            done += 1

    def _pieces(self, pieces: Sequence[str], to: str) -> Iterator[Action]:
        room = self._room(pieces) if to == "content" else math.inf
        for piece in pieces:
            yield from self._step()
            if self._limit is not None and self._written >= self._limit:
                self._reason = "length"
            if self._reason is not None:
                return
            stopped = len(piece) > room
            if stopped:
                piece = piece[: int(room)]
                self._reason = "stop"
            room -= len(piece)
            self._written += 1
            if (left := self._unsaid(piece, to)) is not None and (left or not stopped):
                yield from self._paced(*(_said(choice, to, left) for choice in self._choices))

    def _room(self, pieces: Sequence[str]) -> float:
        """How many characters of `pieces` there are before a stop sequence, which may have begun in earlier text."""
        before = len(self._text)
        self._text += "".join(pieces)
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        self._text = self._text[-_LONGEST_STOP:]
        return max(0, min(found) - before) if found else math.inf

    def _unsaid(self, piece: str, to: str) -> str | None:
        """What of `piece` the reader does not have yet; None when there is nothing to say of it."""
        if not self._skip:
            return piece
        if to != "content":
            return None
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        return piece[skipped:] or None

    def _call(self, statement: CallTool) -> Iterator[Action]:
        index = self._calls
        self._calls += 1
        if self._skip:
            return
        call_id = f"call_{zlib.crc32(repr((prompt_of(self._body), statement)).encode()):08x}{index}"
        head = {"index": index, "id": call_id, "type": "function", "function": {"name": statement.name, "arguments": ""}}
        calls = [head] + [
            {"index": index, "function": {"arguments": statement.arguments[start : start + _ARGUMENT_CHARS]}}
            for start in range(0, len(statement.arguments), _ARGUMENT_CHARS)
        ]
        for call in calls:
            yield from self._paced(*(Delta(choice, tool_calls=[call]) for choice in self._choices))

    def _paced(self, *deltas: Delta) -> Iterator[Action]:
        if self._pause and self._said:
            yield Wait(self._pause)
        self._said += 1
        self._replaying = False
        yield from deltas

    def _usage(self) -> Usage:
        """As said in the script; else words for tokens, which is near enough and needs no vocabulary."""
        if self.manner.usage is not None:
            prompt, completion = self.manner.usage
        else:
            prompt = sum(len(_text(message).split()) for message in _messages(self._body))
            completion = self._said * len(self._choices)
        return Usage(prompt, completion, prompt + completion)


def _said(choice: int, to: str, piece: str) -> Delta:
    match to:
        case "reasoning":
            return Delta(choice, reasoning=piece)
        case "refusal":
            return Delta(choice, refusal=piece)
    return Delta(choice, piece)


def made_up(words: int, seed: int) -> str:
    """So many words, always the same for the same seed."""
    return " ".join(_WORDS[(seed * 7 + place) % len(_WORDS)] for place in range(words))


def _turn(script: Script, body: Mapping[str, Any]) -> Sequence[Statement]:
    """The statements of this turn: it is the n-th when the prompt has been answered n times, with tool calls for instance."""
    answered = 0
    for message in _messages(body):
        if message.get("role") == "user":
            answered = 0
        elif message.get("role") == "assistant":
            answered += 1
    if answered < len(script.turns):
        return script.turns[answered]
    return (Say(f"The tool answered: {_tool_result(body)}"),)


def _demo(body: Mapping[str, Any], prompt: str) -> Sequence[Statement]:
    """What a model would do with an ordinary prompt, told by one that is none."""
    results = _tool_result(body)
    if (tool := _forced_tool(body)) is not None and not results:
        function = tool.get("function") or {}
        arguments = _instance(function.get("parameters") or {"type": "object"}, "tools")
        return (CallTool(str(function.get("name")), msgspec.json.encode(arguments).decode()),)
    match body.get("response_format"):
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return (Say(msgspec.json.encode(_instance(schema, "response_format")).decode()),)
        case {"type": "json_object"}:
            return (Say(msgspec.json.encode({"answer": made_up(12, 0)}).decode()),)
    if results:
        return (Say(f"The tool answered: {results}"),)
    return (Say(_GREETING.format(said=_quoted(prompt))),)


def _instance(schema: Any, param: str) -> Any:
    try:
        return smallest(schema)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InvalidRequest("This is not a JSON schema that the demo model understands.", param=param) from error


_GREETING = (
    "Hello! {said} No model was asked: this is Headgate's demo upstream, and it answers like this every time. What happened is "
    "real, though. Your request became a durable run, each of these words was written to an ordered log before it reached you, "
    "and any client can pick up this stream where it left off. Begin a prompt with /script to direct me."
)


def _quoted(prompt: str) -> str:
    words = prompt.split()
    if not words:
        return "You said nothing, which is fine."
    more = " …" if len(words) > _QUOTED_WORDS else ""
    return f"You said: “{' '.join(words[:_QUOTED_WORDS])[:200]}{more}”."


def _forced_tool(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    tools = [tool for tool in body.get("tools") or () if isinstance(tool, Mapping)]
    match body.get("tool_choice"):
        case "required":
            return tools[0] if tools else None
        case {"function": {"name": name}}:
            return next((tool for tool in tools if (tool.get("function") or {}).get("name") == name), None)
    return None


def _tool_result(body: Mapping[str, Any]) -> str:
    """What tools answered since the last user message."""
    results: list[str] = []
    for message in _messages(body):
        if message.get("role") == "user":
            results.clear()
        elif message.get("role") in ("tool", "function"):
            results.append(_text(message))
    return "; ".join(results)


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [message for message in body.get("messages") or () if isinstance(message, Mapping)]


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _asked_choices(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return min(n, 128) if isinstance(n, int) and n > 0 else 1


def _limit(body: Mapping[str, Any]) -> int | None:
    limits = [body[key] for key in ("max_tokens", "max_completion_tokens") if isinstance(body.get(key), int)]
    return min(limits) if limits else None


def _stops(body: Mapping[str, Any]) -> Sequence[str]:
    stop = body.get("stop")
    return [stop] if isinstance(stop, str) and stop else [item for item in stop or () if isinstance(item, str) and item]
