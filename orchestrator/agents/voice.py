"""How an agent speaks: events under its name, through its attempt's writer."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Event, EventType, Timestamps
from orchestrator.runs import RunState
from orchestrator.streamlog.writer import EventWriter


class Voice:
    """`writer` is the attempt's; whoever says many events of one moment gives them to it at once."""

    def __init__(self, writer: EventWriter, agent_id: str, at: Timestamps) -> None:
        self.writer = writer
        self.agent_id = agent_id
        self.at = at

    def say(
        self,
        event_type: EventType,
        *,
        message: str | None = None,
        payload: dict[str, Any] | None = None,
        state: RunState | None = None,
    ) -> None:
        """Queue one event, which moves the run to `state` if given. Raises what the log has refused the writer with."""
        self.writer.emit(Event(event_type, self.at.now(), self.agent_id, message, payload), state=state)
