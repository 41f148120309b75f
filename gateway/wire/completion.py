"""A run's log as one `chat.completion` object, for requests that do not stream.

It is the same fold as the stream's, so a client that adds up the chunks has what this says. Unlike a stream it can take text
back: `OUTPUT_RESET` only shortens what is being gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import StreamGap
from gateway.wire.answer import Completed, Failed, Said, Unsaid
from gateway.wire.chat_answer import ChatAnswer
from gateway.wire.chat_chunk import completion_id
from gateway.wire.usage import usage_object
from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap
from orchestrator.runs import Run


class Message:
    """What one choice has said, gathered."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {}
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._function_call: dict[str, Any] = {}
        self._logprobs: dict[str, Any] | None = None

    def add(self, said: Said) -> None:
        match said.what:
            case "tool_calls":
                _grow(self._tool_calls.setdefault(said.value["index"], {}), said.value)
            case "function_call":
                _grow(self._function_call, said.value)
            case "content" | "reasoning" | "refusal":
                self._texts.setdefault(said.what, []).append(said.value)
            case "nothing":
                pass
        if said.logprobs is not None:
            self._logprobs = self._logprobs or {}
            _extend(self._logprobs, said.logprobs)

    def cut(self, offset: int) -> None:
        """Content after `offset` is void, and at 0 everything else. Logprobs cannot be cut at a character, so they go."""
        content = (self._text("content") or "")[:offset]
        self._logprobs = None
        if offset:
            self._texts["content"] = [content]
        else:
            self._texts, self._tool_calls, self._function_call = {}, {}, {}

    def choice(self, index: int, finish_reason: str) -> dict[str, Any]:
        return {"index": index, "message": self._object(), "logprobs": self._logprobs, "finish_reason": finish_reason}

    def _object(self) -> dict[str, Any]:
        content = self._text("content")
        calls = bool(self._tool_calls or self._function_call)
        out: dict[str, Any] = {"role": "assistant", "content": None if calls and not content else content}
        out["refusal"] = self._text("refusal")
        if (reasoning := self._text("reasoning")) is not None:
            out["reasoning_content"] = out["reasoning"] = reasoning
        if self._tool_calls:
            out["tool_calls"] = [self._tool_calls[index] for index in sorted(self._tool_calls)]
        if self._function_call:
            out["function_call"] = self._function_call
        return out

    def _text(self, what: str) -> str | None:
        parts = self._texts.get(what)
        return None if parts is None else "".join(parts)


class CompletionFold:
    """Feed it the log from its first event until it has `ended`; then it is a `failure` or has a `body`."""

    def __init__(self, run: Run, turn_after: str | None = None) -> None:
        self.failure: Failure | None = None
        self.ended = False
        self._run = run
        self._turn_after = turn_after
        self._answer = ChatAnswer(run, turn_after)
        self._messages: dict[int, Message] = {}

    def feed(self, items: Sequence[Entry | Gap]) -> None:
        for item in items:
            if self.ended:
                return
            if isinstance(item, Gap):
                self._fail(StreamGap().failure())
            else:
                self._entry(item)

    def headers(self) -> dict[str, str]:
        """What the response's headers say of the answer."""
        return self._answer.headers()

    def body(self) -> bytes:
        """The `chat.completion` object as JSON."""
        return msgspec.json.encode(self.object())

    def object(self) -> dict[str, Any]:
        choices = enumerate(self._answer.choices)
        return {
            "id": completion_id(self._run, self._turn_after),
            "object": "chat.completion",
            "created": self._run.created_ms // 1000,
            "model": self._run.model,
            "choices": [self._message(index).choice(index, self._answer.finish_reason(choice)) for index, choice in choices],
            "usage": usage_object(self._answer.usage),
        }

    def _entry(self, entry: Entry) -> None:
        for piece in self._answer.fold(entry):
            match piece:
                case Said(choice=index):
                    self._message(index).add(piece)
                case Unsaid(choice=index, offset=offset):
                    self._message(index).cut(offset)
                case Completed():
                    self.ended = True
                case Failed(failure):
                    self._fail(failure)

    def _message(self, index: int) -> Message:
        return self._messages.setdefault(index, Message())

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self.ended = True


def _grow(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a tool-call delta: `arguments` and `input` are text that grows, everything else comes once."""
    for key, value in delta.items():
        known = whole.get(key)
        if key == "index":
            continue
        if isinstance(value, dict):
            inner = whole[key] = known if isinstance(known, dict) else {}
            _grow(inner, value)
        elif key in ("arguments", "input") and isinstance(known, str) and isinstance(value, str):
            whole[key] = known + value
        else:
            whole[key] = value


def _extend(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a delta's logprobs: their lists one after the other."""
    for key, value in part.items():
        known = whole.get(key)
        if isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        elif value is not None or key not in whole:
            whole[key] = list(value) if isinstance(value, list) else value
