"""Fitting an answer that is generated again onto what readers already have: silent while it agrees, honest when it does not.

Deltas that repeat what was sent are swallowed. The first character that differs is where the earlier text stops being true:
a `Reset` names it, and the new answer follows from there. Where it is not the content alone that differs (reasoning, a
tool call), the choice starts over at 0. A regenerated tool call may have another id: readers keep the one they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.agents.transcript import FUNCTION_CALL, Transcript
from orchestrator.upstreams.upstream import Delta


class Reset(msgspec.Struct, frozen=True):
    """The choice's content after `offset` characters is unsaid; at 0 its reasoning, refusal and tool calls are too."""

    choice: int
    offset: int


class Splice:
    """Feed it every delta of the new answer, then `end`. What it returns is to be emitted, in order."""

    def __init__(self, sent: Transcript) -> None:
        self._left = sent.tracks()
        self._sent = dict(self._left)
        self._again = Transcript()
        self._free: set[int] = set()

    @property
    def done(self) -> bool:
        """Nothing is left to compare: every further delta passes as it is."""
        return not self._left

    def feed(self, delta: Delta) -> Sequence[Delta | Reset]:
        if delta.choice in self._free:
            return (delta,)
        self._again.add(delta)
        passed = Delta(choice=delta.choice)
        for kind in ("content", "reasoning", "refusal"):
            text = getattr(delta, kind)
            if text is None:
                continue
            rest = self._match(delta.choice, kind, 0, text)
            if rest is None:
                return self._diverge(delta.choice)
            if rest or not text:
                passed = msgspec.structs.replace(passed, **{kind: rest})
        calls = []
        for call in delta.tool_calls or ():
            new = self._match_call(delta.choice, call)
            if new is None:
                return self._diverge(delta.choice)
            if new:
                calls.append(new)
        if delta.function_call is not None:
            new = self._match_call(delta.choice, {"index": FUNCTION_CALL, "function": delta.function_call})
            if new is None:
                return self._diverge(delta.choice)
            if new:
                passed = msgspec.structs.replace(passed, function_call=new["function"])
        if calls:
            passed = msgspec.structs.replace(passed, tool_calls=calls)
        if passed == Delta(choice=delta.choice):
            return ()
        return (msgspec.structs.replace(passed, logprobs=delta.logprobs),)

    def end(self) -> Sequence[Delta | Reset]:
        """The new answer is complete; where it is shorter than what was sent, the rest is unsaid."""
        out: list[Delta | Reset] = []
        for choice in sorted({choice for choice, _, _ in self._left}):
            out += self._diverge(choice)
        return out

    def _match(self, choice: int, kind: str, index: int, text: str) -> str | None:
        """The part of `text` that is new on its track, or None where it contradicts what was sent."""
        track = (choice, kind, index)
        left = self._left.get(track)
        if left is None:
            return text
        if len(text) >= len(left):
            if not text.startswith(left):
                return None
            del self._left[track]
            return text[len(left) :]
        if not left.startswith(text):
            return None
        self._left[track] = left[len(text) :]
        return ""

    def _match_call(self, choice: int, call: dict[str, Any]) -> dict[str, Any] | None:
        """The new part of a tool-call delta, empty when nothing of it is new, None where it differs."""
        index = call["index"]
        if (choice, "tool", index) not in self._sent:
            return call
        function = call.get("function") or {}
        said = f"{function['name']}\n" if "name" in function else ""
        rest = self._match(choice, "tool", index, said + (function.get("arguments") or ""))
        if rest is None:
            return None
        return {"index": index, "function": {"arguments": rest}} if rest else {}

    def _diverge(self, choice: int) -> list[Delta | Reset]:
        """Unsay what no longer holds, and say again what the new answer has said so far beyond it."""
        self._free.add(choice)
        others = [track for track in self._left if track[0] == choice and track[1] != "content"]
        told = {track: text for track, text in self._again.tracks().items() if track[0] == choice}
        sent = {track: text for track, text in self._sent.items() if track[0] == choice}
        self._left = {track: text for track, text in self._left.items() if track[0] != choice}
        new, old = told.get((choice, "content", 0), ""), sent.get((choice, "content", 0), "")
        offset = 0
        if not others:
            while offset < min(len(new), len(old)) and new[offset] == old[offset]:
                offset += 1
        out: list[Delta | Reset] = [Reset(choice, offset)]
        again = self._again.choices.get(choice)
        if again is None:
            return out
        if not offset and (again.reasoning or again.refusal):
            out.append(Delta(choice, reasoning="".join(again.reasoning) or None, refusal="".join(again.refusal) or None))
        if new[offset:]:
            out.append(Delta(choice, content=new[offset:]))
        if not offset and FUNCTION_CALL in again.tools:
            out.append(Delta(choice, function_call=again.output()["function_call"]))
        if not offset:
            out += [Delta(choice, tool_calls=[{"index": index, **call}]) for index, call in again.calls()]
        return out
