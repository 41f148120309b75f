"""Events as the client gives them, whichever door they came through. No I/O."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.wire.sse_decoder import ServerEvent
from headgate.errors import BadAnswer
from orchestrator.events import EventType, timestamp


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that a task said. Types and payloads: `docs/reference/events.md`.

    `seq` counts 1, 2, 3 … per task; it and `stream_id`, the exact one of the two, are positions to resume after. `message` is for
    people: the delta of `LLM_PARTIAL`, the text of `LLM_OUTPUT`. What is said to one reader only (`STREAM_GAP`) has no position.
    """

    workflow_id: str
    type: str
    seq: int = 0
    stream_id: str = ""
    timestamp: str = ""
    agent_id: str | None = None
    message: str | None = None
    payload: dict[str, Any] | None = None

    @property
    def task_id(self) -> str:
        return self.workflow_id


_decode = msgspec.json.Decoder(Event).decode
_POSITION = re.compile(r"([0-9]{1,14})-([0-9]{1,16})")  # calendars have no later milliseconds


def of_message(text: str | bytes) -> Event | None:
    """A WebSocket message; None if it is no event but an answer to an operation. Raises BadAnswer."""
    try:
        return _decode(text)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"A message is not JSON: {error}.") from None


def of_server_event(said: ServerEvent, workflow_id: str, position: str) -> Event:
    """A server-sent event. `position` is where the reader was before it. Raises BadAnswer.

    The end of a stream is `[DONE]`, and its position stands beside it: without a new one, it was told again.
    """
    if said.data == "[DONE]":
        place = _POSITION.fullmatch(said.id)
        if said.id == position or place is None:
            return Event(workflow_id, EventType.STREAM_END)
        return Event(workflow_id, EventType.STREAM_END, int(place[2]), said.id, timestamp(int(place[1])))
    try:
        return _decode(said.data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadAnswer(f"An event cannot be read: {error}.") from None
