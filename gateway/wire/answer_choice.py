"""One choice of an answer: how much of what it has said, so that nothing is said twice. Counters and flags, no text."""

from __future__ import annotations

from typing import Any, Literal

Text = Literal["content", "reasoning", "refusal"]
What = Literal["content", "reasoning", "refusal", "function_call", "tool_calls"]

_KNOWN_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""Clients mis-handle every other one."""


class Logprobs:
    """The logprobs of one event: they go out once, with its first text, or alone."""

    def __init__(self, value: dict[str, Any] | None) -> None:
        self._value = value

    def take(self) -> dict[str, Any] | None:
        value, self._value = self._value, None
        return value


class Choice:
    """`content_chars` counts code points, like the offset of OUTPUT_RESET; hot paths add to it directly."""

    __slots__ = (
        "_call_start",
        "_others",
        "_reason",
        "_told",
        "called_function",
        "called_tools",
        "content_chars",
        "gave_logprobs",
        "spoke",
    )

    def __init__(self) -> None:
        self.content_chars = 0
        self.spoke = False
        """It has content, a refusal, or calls something. Reasoning alone is no answer."""
        self._others: dict[Text, int] = {"reasoning": 0, "refusal": 0}
        self._call_start: dict[Text, int] = {"content": 0, "reasoning": 0, "refusal": 0}
        self._told: set[tuple[int, str]] = set()
        self._reason: str | None = None
        self._new_call()

    def _new_call(self) -> None:
        self.called_tools = self.called_function = self.gave_logprobs = False

    def say(self, what: Text, text: str) -> None:
        if what == "content":
            self.content_chars += len(text)
        else:
            self._others[what] += len(text)
        self.spoke = self.spoke or what != "reasoning"

    def begin_at(self, offset: int) -> None:
        """What this call says begins there, whatever was said since: it was said before, or is said again in part."""
        self._call_start["content"] = offset
        if not offset:
            self._call_start = {"content": 0, "reasoning": 0, "refusal": 0}
            self.called_tools = self.called_tools or any(index >= 0 for index, _ in self._told)
            self.called_function = self.called_function or any(index < 0 for index, _ in self._told)

    def unsaid(self, what: Text, whole: str | None) -> str | None:
        """The part of this call's `whole` text that its deltas did not say; None if that is nothing."""
        said = self._chars(what) - self._call_start[what]
        return (whole or "")[said:] or None

    def with_logprobs(self, logprobs: dict[str, Any] | None) -> Logprobs:
        self.gave_logprobs = self.gave_logprobs or logprobs is not None
        return Logprobs(logprobs)

    def function_call_delta(self, call: dict[str, Any]) -> dict[str, Any]:
        self.called_function = self.spoke = True
        return self._once(-1, call)

    def tool_call_delta(self, call: dict[str, Any], position: int) -> dict[str, Any]:
        """A tool-call delta as clients bear it: `index` always; id, type and name once per index; no nulls.

        A list without indices is in order. The first delta of a function has arguments, if only the empty text.
        """
        self.called_tools = self.spoke = True
        index = call.get("index")
        if not isinstance(index, int) or index < 0:
            index = position
        first = (index, "") not in self._told
        delta: dict[str, Any] = {"index": index}
        for key, value in call.items():
            if key == "index" or value is None:
                continue
            if isinstance(value, dict):
                delta[key] = self._once(index, value)
            elif self._first_time(index, key):
                delta[key] = value
        if first and isinstance(function := delta.get("function"), dict):
            function.setdefault("arguments", "")
        self._told.add((index, ""))
        return delta

    def begin_turn(self) -> None:
        """What it calls from here on, and why it ends, is another turn's."""
        self._told, self._reason, self.spoke = set(), None, False
        self._new_call()

    def close_call(self, reason: str) -> None:
        self._reason = reason
        self._call_start = {"content": self.content_chars, **self._others}
        self._new_call()

    def reset(self, offset: int) -> bool:
        """Go back; False if nothing that was said is lost by it."""
        loses_text = offset < self.content_chars
        loses_rest = offset == 0 and bool(self._told or any(self._others.values()))
        if not (loses_text or loses_rest):
            return False
        self.content_chars = min(offset, self.content_chars)
        self._call_start["content"] = min(offset, self._call_start["content"])
        self.gave_logprobs = False
        if offset == 0:
            self._others = {"reasoning": 0, "refusal": 0}
            self._call_start = {"content": 0, "reasoning": 0, "refusal": 0}
            self._told, self.spoke = set(), False
            self._new_call()
        return True

    def finish_reason(self, fallback: str | None) -> str:
        """`length` and `content_filter` stay also after tool calls: their arguments may be cut off."""
        reason = self._reason or fallback
        if reason in ("length", "content_filter"):
            return reason
        if any(index >= 0 for index, _ in self._told):
            return "tool_calls"
        if self._told:
            return "function_call"
        return reason if reason in _KNOWN_REASONS else "stop"

    def _chars(self, what: Text) -> int:
        return self.content_chars if what == "content" else self._others[what]

    def _once(self, index: int, part: dict[str, Any]) -> dict[str, Any]:
        """The part without nulls, and without what was told already unless it is the text that keeps growing."""
        return {
            key: value
            for key, value in part.items()
            if value is not None and (key in ("arguments", "input") or self._first_time(index, key))
        }

    def _first_time(self, index: int, key: str) -> bool:
        if (index, key) in self._told:
            return False
        self._told.add((index, key))
        return True
