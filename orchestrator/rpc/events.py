"""`EventService`: events from producers outside, into the logs of their runs.

Requests are answered one by one in their order, so a producer that sends ahead needs no bookkeeping of its own: where one is
refused, the log refuses those that skip over it. What is refused is said in the acknowledgement, because one run's trouble is not
that of the others on the same stream.
"""

from __future__ import annotations

import msgspec

from orchestrator.engine import Engine, Publication, Published, PublishedEvent
from orchestrator.errors import HeadgateError, InvalidRequest
from orchestrator.nesting import MAX_DEPTH, json_nested_deeper
from orchestrator.rpc.access import Drain
from orchestrator.rpc.edge import Line
from orchestrator.rpc.status import details_of
from orchestrator.rpc.translate import plain, text_of
from orchestrator.runs import Principal
from protos import events_pb2 as pb


class EventService:
    def __init__(self, engine: Engine, drain: Drain) -> None:
        self._engine = engine
        self._drain = drain

    async def PublishEvents(self, principal: Principal, line: Line) -> None:
        async with self._drain.until_closed(principal):
            while (request := await line.read(pb.PublishRequest)) is not None:
                ack = pb.PublishAck(workflow_id=request.workflow_id, writer=request.writer, producer_seq=request.producer_seq)
                try:
                    published = await self._engine.publish(principal, request.workflow_id, _publication(request))
                except HeadgateError as error:
                    ack.error.CopyFrom(pb.PublishError(code=error.code, message=details_of(error), retryable=error.retryable))
                else:
                    _accept(ack, published)
                await line.write(ack.SerializeToString())


def _accept(ack: pb.PublishAck, published: Published) -> None:
    ack.known_already = published.repeated
    for position in published.positions:
        if position is None:
            ack.positions.add()
        else:
            ack.positions.add(seq=position.seq, stream_id=position.text)


def _publication(request: pb.PublishRequest) -> Publication:
    """Raises InvalidRequest."""
    return Publication(
        writer=request.writer,
        attempt=request.attempt,
        producer_seq=request.producer_seq,
        events=[_event(event, f"events[{place}]") for place, event in enumerate(request.events)],
    )


def _event(event: pb.PublishEvent, place: str) -> PublishedEvent:
    return PublishedEvent(
        type=event.type,
        agent_id=event.agent_id or None,
        message=event.message or None,
        payload=_payload(event, place),
        timestamp=_timestamp(event, place),
    )


def _payload(event: pb.PublishEvent, place: str) -> dict[str, object] | None:
    if not event.payload_json:
        return plain(event.payload) if event.HasField("payload") else None
    if event.HasField("payload"):
        raise InvalidRequest("An event has a payload or a payload_json, not both.", param=f"{place}.payload_json")
    try:
        payload = msgspec.json.decode(event.payload_json, type=dict[str, object])
        too_deep = json_nested_deeper(event.payload_json)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("'payload_json' is not a JSON object.", param=f"{place}.payload_json") from None
    if too_deep:
        raise InvalidRequest(f"'payload_json' is nested deeper than {MAX_DEPTH} levels.", param=f"{place}.payload_json")
    return payload


def _timestamp(event: pb.PublishEvent, place: str) -> str | None:
    if not event.HasField("timestamp"):
        return None
    try:
        return text_of(event.timestamp)
    except ValueError:
        raise InvalidRequest("The timestamp is in no calendar.", param=f"{place}.timestamp") from None
