"""Tool-call deltas as clients accumulate them: an index always, id, type and name once, never a null.

Servers leave out the index, repeat id and name on every delta, or send nulls for keys that do not apply. What they mean is kept:
another id under the same index goes on as sent, and nothing that they did not send is made up.
"""

from __future__ import annotations

from typing import Any

import msgspec


class ToolCalls:
    """The tool calls of one choice, as far as they have been announced."""

    def __init__(self) -> None:
        self._announced: dict[int, dict[str, Any]] = {}
        self._indexes: dict[str, int] = {}
        """By id, for deltas that come without an index: an upstream may make thousands of calls."""
        self._next = 0
        self._last = 0

    def normal(self, sent: dict[str, Any], position: int | None = None) -> dict[str, Any] | None:
        """`sent` made regular; None when nothing is left of it. `position` is its place in a whole message."""
        index = sent.get("index")
        if not isinstance(index, int):
            index = self._index_of(sent.get("id")) if position is None else position
        self._last = index
        self._next = max(self._next, index + 1)
        announced = self._announced.setdefault(index, {})
        if sent.get("id") and announced.get("id") not in (None, sent["id"]):
            announced.clear()
        if isinstance(call_id := sent.get("id"), str):
            self._indexes.setdefault(call_id, index)
        call: dict[str, Any] = {"index": index}
        for key, value in sent.items():
            if value is None or key in ("index", "function"):
                continue
            if key in ("id", "type") and not self._first(announced, key, value):
                continue
            call[key] = value
        function = self._function(sent.get("function"), announced)
        if function:
            call["function"] = function
        return call if len(call) > 1 else None

    def _function(self, sent: Any, announced: dict[str, Any]) -> dict[str, Any]:
        function: dict[str, Any] = {}
        for key, value in (sent if isinstance(sent, dict) else {}).items():
            if value is None or (key == "name" and not self._first(announced, key, value)):
                continue
            if key == "arguments" and not isinstance(value, str):
                value = msgspec.json.encode(value).decode()
            function[key] = value
        return function

    def _index_of(self, call_id: Any) -> int:
        """The index of a delta that came without: a known id's, a new one for a new id, else that of the delta before."""
        if not call_id:
            return self._last
        known = self._indexes.get(call_id) if isinstance(call_id, str) else None
        return self._next if known is None else known

    @staticmethod
    def _first(announced: dict[str, Any], key: str, value: Any) -> bool:
        """Whether this value has not been said yet. An empty one never needs to be."""
        if not value or announced.get(key) == value:
            return False
        announced[key] = value
        return True
