"""Between the engine's words and protobuf's. No I/O."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator.events import Entry
from orchestrator.nesting import nested_deeper
from orchestrator.runs import RunState
from protos.orchestrator_pb2 import TaskStatus
from protos.streaming_pb2 import TaskUpdate

STATUS_OF: Mapping[RunState, TaskStatus] = {
    RunState.QUEUED: TaskStatus.TASK_STATUS_QUEUED,
    RunState.RUNNING: TaskStatus.TASK_STATUS_RUNNING,
    RunState.PAUSED: TaskStatus.TASK_STATUS_PAUSED,
    RunState.COMPLETED: TaskStatus.TASK_STATUS_COMPLETED,
    RunState.FAILED: TaskStatus.TASK_STATUS_FAILED,
    RunState.CANCELLED: TaskStatus.TASK_STATUS_CANCELLED,
    RunState.TIMEOUT: TaskStatus.TASK_STATUS_TIMEOUT,
}
STATE_OF = {status: state for state, status in STATUS_OF.items()}

MAX_STRUCT_DEPTH = 32
"""Protobuf decoders give up at a hundred levels of messages, and an object in a Struct takes three of them."""


class _Parts(msgspec.Struct):
    payload: msgspec.Raw = msgspec.Raw()


_parts = msgspec.json.Decoder(_Parts).decode


class Updates:
    """Encodes the entries of one run as `TaskUpdate`s."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._second = ""
        self._seconds = 0

    def encode(self, entry: Entry) -> bytes:
        event = entry.event
        update = TaskUpdate(
            workflow_id=self._run_id,
            type=event.type,
            agent_id=event.agent_id,
            message=event.message,
            timestamp=self._timestamp(event.timestamp, entry.ms),
            seq=entry.seq,
            stream_id=entry.stream_id,
        )
        if event.payload is not None:
            update.payload_json = bytes(_parts(entry.body).payload)
            if not nested_deeper(event.payload, MAX_STRUCT_DEPTH):
                _fill(update.payload, event.payload)
        return update.SerializeToString()

    def _timestamp(self, text: str, ms: int) -> Timestamp:
        """Of many events in one second, the second is parsed once."""
        if len(text) != 24 or text[-1] != "Z":
            return instant_of(text) or instant(ms)
        if text[:20] != self._second:
            parsed = instant_of(text)
            if parsed is None:
                return instant(ms)
            self._second, self._seconds = text[:20], parsed.seconds
        return Timestamp(seconds=self._seconds, nanos=int(text[20:23]) * 1_000_000)


def instant(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def instant_of(text: str) -> Timestamp | None:
    """RFC 3339 as a point in time; None for what is not one, such as a publisher's 31st of February."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def text_of(moment: Timestamp) -> str:
    """A point in time in RFC 3339. Raises ValueError for what no calendar has."""
    return moment.ToJsonString()


def struct_of(members: Mapping[str, Any]) -> Struct:
    struct = Struct()
    _fill(struct, members)
    return struct


def plain(struct: Struct) -> dict[str, Any]:
    """A Struct as JSON has it. Whole numbers become integers, because a Struct cannot tell 1 from 1.0 and JSON's readers can."""
    return {name: _plain(value) for name, value in struct.fields.items()}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return plain(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case _:
            return None


def _fill(struct: Struct, members: Mapping[str, Any]) -> None:
    struct.SetInParent()
    fields = struct.fields
    for name, value in members.items():
        _set(fields[name], value)


def _set(target: Value, value: Any) -> None:
    match value:
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case int() | float():
            target.number_value = _double(value)
        case None:
            target.null_value = 0  # type: ignore[assignment]  # the enum NullValue has this one member
        case dict():
            _fill(target.struct_value, value)
        case _:
            target.list_value.SetInParent()
            for item in value:
                _set(target.list_value.values.add(), item)


def _double(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)
