"""What the command writes: answers to standard output, everything about them to standard error, colour only for people."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

import msgspec

DIM, RED, BOLD = "2", "31", "1"


def styled(text: str, style: str, stream: TextIO) -> str:
    """`text` in a style, if `stream` is a terminal whose user has not asked for none (https://no-color.org)."""
    return f"\x1b[{style}m{text}\x1b[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text


def note(text: str) -> None:
    """Something about the answer."""
    print(styled(text, DIM, sys.stderr), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Something went wrong."""
    print(styled("headgate: ", RED, sys.stderr) + text, file=sys.stderr, flush=True)


class AnswerPrinter:
    """Writes the first choice of a chat stream as it comes: its text, on a terminal also its reasoning, then its tool calls."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._reasoning = False
        self._calls: dict[int, dict[str, str]] = {}
        self._usage: dict[str, Any] | None = None
        self._finish_reason: str | None = None
        self._at_line_start = True

    def show(self, chunk: dict[str, Any]) -> None:
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk.get("choices", ()):
            if choice["index"] == 0:
                self._delta(choice["delta"])
                self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def end(self) -> None:
        """The answer is complete or will never be."""
        for call in self._calls.values():
            self._line_start()
            self._write(f"{call['name']}({call['arguments']})")
        self._line_start()

    def summary(self) -> str:
        """Why the answer ended and what it cost, as far as the server said."""
        parts = [f"finish reason: {self._finish_reason}"] if self._finish_reason else []
        if usage := self._usage:
            parts.append(f"{usage['prompt_tokens']} + {usage['completion_tokens']} tokens")
        return ", ".join(parts)

    def _delta(self, delta: dict[str, Any]) -> None:
        if (reasoning := delta.get("reasoning_content")) and self._out.isatty():
            self._reasoning = True
            self._write(reasoning, DIM)
        if text := delta.get("content") or delta.get("refusal"):
            if self._reasoning:
                self._line_start()
                self._reasoning = False
            self._write(text)
        for call in delta.get("tool_calls") or ():
            known = self._calls.setdefault(call["index"], {"name": "", "arguments": ""})
            for part, value in call.get("function", {}).items():
                known[part] = known.get(part, "") + (value or "")

    def _line_start(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str, style: str | None = None) -> None:
        self._out.write(styled(text, style, self._out) if style else text)
        self._out.flush()
        self._at_line_start = text.endswith("\n")


class JsonPrinter:
    """Writes each object as one line of JSON, for programs. Same shape as `AnswerPrinter`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, chunk: dict[str, Any]) -> None:
        self._out.write(msgspec.json.encode(chunk).decode() + "\n")
        self._out.flush()

    def end(self) -> None:
        return

    def summary(self) -> str:
        return ""
