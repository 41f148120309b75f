"""From where a client wants a stream again, as it says it in headers and query. What it cannot mean is a 400, never a guess."""

from __future__ import annotations

import re
from typing import NamedTuple

from aiohttp import web

from orchestrator.errors import InvalidPosition, InvalidRequest
from orchestrator.streamlog.log import Position, parse_position

_COUNT = re.compile(r"[0-9]{1,16}")


class ResumePoint(NamedTuple):
    """After so many chunks, or after the event that `after` names. At most one of the two is set."""

    chunks: int = 0
    after: Position | None = None


def resume_point(request: web.Request) -> ResumePoint:
    """`Last-Event-ID` wins over `starting_after`; empty is the beginning. Raises InvalidPosition."""
    event_ids = request.headers.getall("Last-Event-ID", [])
    counts = request.query.getall("starting_after", [])
    if len(event_ids) > 1 or len(counts) > 1:
        raise InvalidPosition("A position may be given only once.")
    if counts and not _COUNT.fullmatch(counts[0]):
        raise InvalidPosition("'starting_after' is the number of chunks already received, in digits.", param="starting_after")
    if event_ids and event_ids[0]:
        return ResumePoint(after=parse_position(event_ids[0]))
    return ResumePoint(chunks=int(counts[0]) if counts else 0)


def asks_for_stream(request: web.Request) -> bool:
    """`?stream=true`, or an `Accept` header that names event streams."""
    match request.query.get("stream"):
        case "true":
            return True
        case "false":
            return False
        case None:
            return "text/event-stream" in request.headers.get("Accept", "")
        case _:
            raise InvalidRequest("'stream' is either true or false.", param="stream")
