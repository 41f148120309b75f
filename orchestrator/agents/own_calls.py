"""Telling apart, delta by delta, the calls of our own tools from those that the client is to make. No I/O.

Clients execute whatever calls they are shown, and a secret in the arguments would be told before it is recognised. So readers are
shown nothing of our own calls while they are being written; `TOOL_INVOKED` tells of each when it is made.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec

from orchestrator.agents.transcript import Choice
from orchestrator.agents.turn import ToolCall, written
from orchestrator.upstreams.upstream import Delta


class OwnCalls:
    """Those of one upstream call. Only choice 0 can call tools of ours; what other choices want of them is dropped.

    `names` are ours. None: the client has none, so that every call is one of ours, and one that does not exist is told the model.
    """

    def __init__(self, names: Container[object] | None) -> None:
        self._names = names
        self._own: set[tuple[int, int]] = set()
        self._told: dict[tuple[int, int], int] = {}
        self._count: dict[int, int] = {}
        self._written = Choice()

    @property
    def begun(self) -> bool:
        return bool(self._own)

    def rest(self, delta: Delta) -> Delta | None:
        """What readers are told of the delta; None for nothing. Without our calls, theirs are numbered from 0."""
        left: list[dict[str, Any]] = []
        for call in delta.tool_calls or ():
            place = (delta.choice, call["index"])
            if place in self._own or (place not in self._told and self._is_ours(call)):
                self._own.add(place)
                if delta.choice == 0:
                    self._written.add(Delta(tool_calls=[call]))
                continue
            index = self._told.get(place)
            if index is None:
                index = self._told[place] = self._count.get(delta.choice, 0)
                self._count[delta.choice] = index + 1
            left.append({**call, "index": index})
        rest = msgspec.structs.replace(delta, tool_calls=left or None)
        return None if rest == Delta(delta.choice) else rest

    def _is_ours(self, call: dict[str, Any]) -> bool:
        return self._names is None or (call.get("function") or {}).get("name") in self._names

    def calls(self) -> list[ToolCall]:
        """In order, each with an id of its own: servers forget ids, or give one twice."""
        calls: list[ToolCall] = []
        given: set[str] = set()
        for number, (_, call) in enumerate(self._written.calls()):
            sent = call.get("id")
            call_id = sent if isinstance(sent, str) and sent else f"call_{number}"
            if call_id in given:
                call_id = f"{call_id}-{number}"
            given.add(call_id)
            calls.append(written(call_id, call["function"].get("name", ""), call["function"]["arguments"]))
        return calls

    def text(self) -> str:
        """What was written, for counting its tokens."""
        return "".join(call["function"].get("name", "") + call["function"]["arguments"] for _, call in self._written.calls())
