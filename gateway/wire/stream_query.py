"""What a native stream is asked for, in the query and in one header. The same for SSE and WebSocket. No I/O."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import MinLen
from multidict import MultiMapping
from pydantic import BaseModel, Field

from gateway.wire.task_bodies import Types, parse_query
from orchestrator.errors import InvalidPosition, RunNotFound
from orchestrator.runs import is_run_id
from orchestrator.streamlog.log import POSITION, Position, parse_position


class StreamQuery(BaseModel):
    """Unknown parameters belong to somebody else: tickets, and what browsers and proxies add."""

    workflow_id: Annotated[str, MinLen(1)] = Field(description="The task whose events are wanted.")
    types: Types = Field(
        default=frozenset(), description="Only events of these types, separated by commas. Endings and gaps always come."
    )
    last_event_id: str = Field(
        default="",
        json_schema_extra={"pattern": POSITION},
        description="The position after which to begin: an event's `stream_id` or `seq`. The header `Last-Event-ID` wins.",
    )


class SseQuery(StreamQuery):
    names: Literal["raw"] | None = Field(default=None, description="`raw`: each event's name is its type.")


class Asked(NamedTuple):
    """`types` is empty for all of them."""

    run_id: str
    position: Position
    types: frozenset[str] = frozenset()
    raw_names: bool = False


def asked_stream(model: type[StreamQuery], query: MultiMapping[str], headers: MultiMapping[str]) -> Asked:
    """Raises InvalidRequest for what cannot be meant, RunNotFound for what cannot be a run's id."""
    asked = parse_query(model, query)
    header = headers.getall("Last-Event-ID", [])
    if len(header) > 1:
        raise InvalidPosition("A position may be given only once.")
    position = parse_position(asked.last_event_id)
    if header and header[0]:
        position = parse_position(header[0])
    if not is_run_id(asked.workflow_id):
        raise RunNotFound
    names: Any = getattr(asked, "names", None)
    return Asked(asked.workflow_id, position, asked.types, names == "raw")
