"""`StreamingService`: a run's log, from a position until its end, as one gRPC stream.

A filter decides what is written, never where the reader stands, and lets endings and gaps through.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.engine import Engine, Subscription
from orchestrator.errors import InvalidRequest, Unavailable
from orchestrator.events import ENDINGS, Entry, EventType, Gap, is_event_type
from orchestrator.rpc.access import Drain, Observer
from orchestrator.rpc.edge import Line
from orchestrator.rpc.status import EventsMissing
from orchestrator.rpc.translate import Updates
from orchestrator.runs import Principal
from orchestrator.streamlog.log import BEGINNING, Position, parse_position
from protos.streaming_pb2 import StreamRequest

_ALWAYS = ENDINGS | {EventType.STREAM_END}

_PATIENCE_S = 10.0
"""Silence after which the subscription is asked again, which makes it look whether it missed something."""


class LogCutShort(Unavailable):
    """The run's log ended without saying how the run ended. Resume the stream."""

    code = "log_cut_short"


class StreamingService:
    def __init__(self, engine: Engine, drain: Drain, observer: Observer) -> None:
        self._engine = engine
        self._drain = drain
        self._observer = observer

    async def StreamTaskExecution(self, principal: Principal, request: StreamRequest, line: Line) -> None:
        run_id = request.workflow_id
        if not run_id:
            raise InvalidRequest("'workflow_id' is empty.", param="workflow_id")
        position = position_of(request)
        wanted = wanted_types(request.types)
        async with self._drain.until_closed(principal), self._engine.subscribe(principal, run_id, position) as subscription:
            await line.begin([("x-workflow-id", run_id)])
            self._observer.stream_opened()
            try:
                await _move(subscription, position, wanted, Updates(run_id), line)
            finally:
                self._observer.stream_closed()


def position_of(request: StreamRequest) -> Position:
    """Raises InvalidPosition."""
    if request.last_stream_id:
        return parse_position(request.last_stream_id)
    return parse_position(str(request.last_event_id)) if request.last_event_id else BEGINNING


def wanted_types(names: Iterable[str]) -> frozenset[str]:
    """What is let through; empty lets everything through. Raises InvalidRequest for a name that no event can have."""
    asked = frozenset(names)
    if unknown := sorted(name for name in asked if not is_event_type(name)):
        raise InvalidRequest(
            f"No event has the type '{unknown[0][:100]}'. Publishers' own begin with X_.",
            code="unknown_event_type",
            param="types",
        )
    return asked | _ALWAYS if asked else asked


async def _move(subscription: Subscription, position: Position, wanted: frozenset[str], updates: Updates, line: Line) -> None:
    last: Entry | None = None
    while last is None or not last.is_end:
        items = await subscription.next(_PATIENCE_S)
        for item in items:
            if isinstance(item, Gap):
                if last is not None or not _misses_nothing(item, position):
                    raise EventsMissing(item)
                continue
            last = item
            if not wanted or item.event.type in wanted:
                await line.write(updates.encode(item))
        if not items and subscription.ended:
            if last is None and position.seq:
                return  # the position was that of the last event
            raise LogCutShort(retry_after_s=1)


def _misses_nothing(gap: Gap, position: Position) -> bool:
    """The event that a `seq` names is gone, and all that follow it are there: a reader who goes on where it was told to."""
    return position.ms is None and gap.resumes_at == position.seq + 1
