import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PublishRequest(_message.Message):
    __slots__ = ("workflow_id", "writer", "attempt", "producer_seq", "events")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    writer: str
    attempt: int
    producer_seq: int
    events: _containers.RepeatedCompositeFieldContainer[PublishEvent]
    def __init__(self, workflow_id: _Optional[str] = ..., writer: _Optional[str] = ..., attempt: _Optional[int] = ..., producer_seq: _Optional[int] = ..., events: _Optional[_Iterable[_Union[PublishEvent, _Mapping]]] = ...) -> None: ...

class PublishEvent(_message.Message):
    __slots__ = ("type", "agent_id", "message", "timestamp", "payload", "payload_json")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_JSON_FIELD_NUMBER: _ClassVar[int]
    type: str
    agent_id: str
    message: str
    timestamp: _timestamp_pb2.Timestamp
    payload: _struct_pb2.Struct
    payload_json: bytes
    def __init__(self, type: _Optional[str] = ..., agent_id: _Optional[str] = ..., message: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., payload: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., payload_json: _Optional[bytes] = ...) -> None: ...

class PublishAck(_message.Message):
    __slots__ = ("workflow_id", "writer", "producer_seq", "positions", "known_already", "error")
    WORKFLOW_ID_FIELD_NUMBER: _ClassVar[int]
    WRITER_FIELD_NUMBER: _ClassVar[int]
    PRODUCER_SEQ_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    KNOWN_ALREADY_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    workflow_id: str
    writer: str
    producer_seq: int
    positions: _containers.RepeatedCompositeFieldContainer[EventPosition]
    known_already: bool
    error: PublishError
    def __init__(self, workflow_id: _Optional[str] = ..., writer: _Optional[str] = ..., producer_seq: _Optional[int] = ..., positions: _Optional[_Iterable[_Union[EventPosition, _Mapping]]] = ..., known_already: _Optional[bool] = ..., error: _Optional[_Union[PublishError, _Mapping]] = ...) -> None: ...

class EventPosition(_message.Message):
    __slots__ = ("seq", "stream_id")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    seq: int
    stream_id: str
    def __init__(self, seq: _Optional[int] = ..., stream_id: _Optional[str] = ...) -> None: ...

class PublishError(_message.Message):
    __slots__ = ("code", "message", "retryable")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRYABLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    retryable: bool
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., retryable: _Optional[bool] = ...) -> None: ...
