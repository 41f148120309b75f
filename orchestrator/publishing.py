"""Events from outside: what a user's own worker may put into a run's log, checked before it gets there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.approvals import Approvals
from orchestrator.clock import Clock
from orchestrator.endings import failed_state
from orchestrator.engine import Publication, Published, PublishedEvent
from orchestrator.errors import Failure, InvalidRequest
from orchestrator.events import ENDINGS, Event, EventType, encode, is_event_type, timestamp
from orchestrator.runs import Run, RunState
from orchestrator.streamlog.log import Log, Position

MAX_EVENTS = 1000
"""Events in one publication."""

MAX_EVENT_BYTES = 1024 * 1024

_UNSTORED = frozenset({"HEARTBEAT", "PING"})
_REFUSED = frozenset({EventType.STREAM_GAP, EventType.STREAM_END, EventType.WORKFLOW_STARTED})
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_STATES: Mapping[str, RunState] = {
    EventType.WORKFLOW_COMPLETED: RunState.COMPLETED,
    EventType.WORKFLOW_FAILED: RunState.FAILED,
    EventType.WORKFLOW_CANCELLED: RunState.CANCELLED,
    EventType.WORKFLOW_PAUSED: RunState.PAUSED,
    EventType.WORKFLOW_RESUMED: RunState.RUNNING,
}


class Publishing:
    def __init__(self, log: Log, approvals: Approvals, clock: Clock) -> None:
        self._log = log
        self._approvals = approvals
        self._clock = clock

    async def publish(self, run: Run, publication: Publication, *, step: str = "") -> Published:
        """`step`: of the run's, is what the publisher works for. Raises InvalidRequest, and what the log refuses it with."""
        _check(publication, of_a_step=bool(step))
        now = timestamp(int(self._clock.time() * 1000))
        stored = [event for event in publication.events if event.type not in _UNSTORED]
        events = [_event(event, now) for event in stored]
        state = _state(run, events)
        ends = state is not None and state.ended
        if ends:
            events.append(Event(EventType.STREAM_END, now))
        appended = await self._log.append(
            run.id,
            f"from:{step}/{publication.writer}" if step else f"from:{publication.writer}",
            publication.attempt,
            publication.producer_seq,
            [_encoded(event) for event in events],
            events=events,
            state=state,
            ends=ends,
        )
        for event in events:
            if event.type == EventType.APPROVAL_REQUESTED and not appended.repeated:
                await self._approvals.asked(run, event.payload or {}, event.timestamp)
        return Published(_positions(publication.events, appended.first_seq, appended.ms), appended.repeated)


def _check(publication: Publication, *, of_a_step: bool) -> None:
    if not _NAME.fullmatch(publication.writer):
        raise InvalidRequest("A writer's name is 1 to 128 letters, digits and . _ : / -", param="writer")
    if publication.attempt < 1 or publication.producer_seq < 1:
        raise InvalidRequest("attempt and producer_seq count from 1.", param="producer_seq")
    if not 0 < len(publication.events) <= MAX_EVENTS:
        raise InvalidRequest(f"A publication has 1 to {MAX_EVENTS} events.", param="events")
    for place, event in enumerate(publication.events):
        _check_event(event, f"events[{place}]", last=place == len(publication.events) - 1)
        if of_a_step and event.type in _STATES:
            raise InvalidRequest(
                f"{event.type} is for the whole run, and this workflow is a step of it: let it return, or fail.",
                param=f"events[{place}].type",
                code="not_for_a_step",
            )


def _check_event(event: PublishedEvent, place: str, *, last: bool) -> None:
    known = event.type in _UNSTORED or is_event_type(event.type)
    if not known or event.type in _REFUSED:
        raise InvalidRequest(
            f"The type {event.type[:80]!r} cannot be published. Use one of the documented types, or your own with the prefix X_.",
            param=f"{place}.type",
        )
    if event.type in ENDINGS and not last:
        raise InvalidRequest("Nothing can follow an ending.", param=f"{place}.type")
    if event.timestamp is not None and not _RFC3339.fullmatch(event.timestamp):
        raise InvalidRequest("A timestamp is RFC 3339, such as 2026-01-31T12:00:00.000Z.", param=f"{place}.timestamp")
    payload = event.payload or {}
    if event.type == EventType.APPROVAL_REQUESTED and not isinstance(payload.get("approval_id"), str):
        raise InvalidRequest("An approval needs an approval_id.", param=f"{place}.payload.approval_id")
    if event.type == EventType.WORKFLOW_FAILED and _failure(payload) is None:
        raise InvalidRequest("A failure needs an error with code and message.", param=f"{place}.payload.error")


def _failure(payload: dict[str, Any]) -> Failure | None:
    """The failure that a payload tells of, if it can be read as one by whoever looks at the run later."""
    try:
        return msgspec.convert(payload.get("error"), Failure)
    except msgspec.ValidationError:
        return None


def _state(run: Run, events: Sequence[Event]) -> RunState | None:
    """What these events make of the run. One that stands still goes on when it says so, not with any word from its worker."""
    state = RunState.RUNNING if run.state is RunState.QUEUED else None
    for event in events:
        state = _STATES.get(event.type, state)
        if event.type == EventType.WORKFLOW_FAILED and (failure := _failure(event.payload or {})) is not None:
            state = failed_state(failure)
    return state


def _event(event: PublishedEvent, now: str) -> Event:
    return Event(event.type, event.timestamp or now, event.agent_id, event.message, event.payload)


def _encoded(event: Event) -> bytes:
    try:
        body = encode(event)
    except (msgspec.MsgspecError, TypeError, ValueError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"An event of type {event.type} is not JSON.", param="events") from error
    if len(body) > MAX_EVENT_BYTES:
        raise InvalidRequest(f"An event is larger than {MAX_EVENT_BYTES} bytes.", param="events")
    return body


def _positions(events: Sequence[PublishedEvent], first_seq: int, ms: int) -> list[Position | None]:
    positions: list[Position | None] = []
    seq = first_seq
    for event in events:
        if event.type in _UNSTORED:
            positions.append(None)
        else:
            positions.append(Position(seq, ms))
            seq += 1
    return positions
