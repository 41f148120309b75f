"""Reading `LLM_OUTPUT`: which of them end an answer, and the text of an answer that took several. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.events import Event, EventType

_CUT_SHORT = frozenset({"length", "content_filter"})
"""Finish reasons after which calls may be incomplete, so that none is made."""


def goes_on(facts: Mapping[str, Any]) -> bool:
    """Whether the conversation goes on after a call with this output: our tools were called, and nobody else's.

    Where the client's were called too, only it can go on. It would not tell the model what ours have done, so they do nothing.
    """
    ours = bool(facts.get("server_tool_calls")) and not facts.get("aborted")
    return ours and not ("tool_calls" in facts or "function_call" in facts or facts.get("finish_reason") in _CUT_SHORT)


class Answers:
    """The answers of agents, each the text of all its turns in a row. Feed it their beginnings and their outputs in order."""

    def __init__(self) -> None:
        self._begun: dict[str | None, str] = {}

    def add(self, event: Event) -> str | None:
        """The answer that this event completes; None where it goes on, or broke off to be said again."""
        if event.type == EventType.AGENT_STARTED:
            self._begun.pop(event.agent_id, None)  # once more, from the beginning
            return None
        facts = event.payload or {}
        if facts.get("aborted"):
            return None
        text = self._begun.pop(event.agent_id, "") + (event.message or "")
        if not goes_on(facts):
            return text
        self._begun[event.agent_id] = text
        return None
