"""Parsers of what clients ask: bodies, queries, positions, messages, scripts; and of the configuration."""

# ruff: noqa: PT017 - what a refusal says is part of the promise

from __future__ import annotations

import tempfile
from collections.abc import Callable, Coroutine, Hashable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from google.protobuf.message import DecodeError
from multidict import CIMultiDict, MultiDict

from gateway.settings import load
from gateway.settings_errors import ConfigError
from gateway.wire import task_bodies as bodies
from gateway.wire.chat_request import parse_chat_request
from gateway.wire.stream_query import SseQuery, asked_stream
from gateway.wire.ws_messages import Operation, parse_operation
from orchestrator.errors import HeadgateError, InvalidRequest
from orchestrator.events import Entry, encode
from orchestrator.nesting import nested_deeper
from orchestrator.publishing import _check, _encoded, _event  # its parser, without the log behind it
from orchestrator.rpc.events import _publication
from orchestrator.rpc.streaming import position_of, wanted_types
from orchestrator.rpc.translate import Updates, plain
from orchestrator.streamlog.log import parse_position
from orchestrator.upstreams.script import parse as parse_script
from protos.events_pb2 import PublishEvent, PublishRequest
from protos.orchestrator_pb2 import SubmitTaskRequest
from protos.streaming_pb2 import StreamRequest
from tests.security.fuzz.target import Target

_TIMESTAMP = "2026-01-01T00:00:00.000Z"


def position(data: bytes) -> Hashable:
    """A position is refused as InvalidPosition, or says after reading exactly what it said before."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        place = parse_position(text)
    except HeadgateError as error:
        assert error.status == 400
        return error.code
    assert not text or [int(part) for part in place.text.split("-")] == [int(part) for part in text.split("-")]
    assert text.isascii()
    assert place.seq < 10**16
    return place.ms is None


def stream_query(data: bytes) -> Hashable:
    """A query and a `Last-Event-ID` are understood, or refused with a 400 or a 404."""
    text, _, header = data.decode("utf-8", "surrogateescape").partition("\n")
    query = MultiDict(parse_qsl(text, keep_blank_values=True, encoding="utf-8", errors="surrogateescape"))
    models = [bodies.TasksQuery, bodies.EventsQuery, bodies.TimelineQuery, bodies.ApprovalsQuery, bodies.HistoryQuery]
    attempts: list[Callable[[], object]] = [lambda: asked_stream(SseQuery, query, CIMultiDict({"Last-Event-ID": header}))]
    attempts += [lambda model=model: bodies.parse_query(model, query) for model in models]  # type: ignore[misc]
    return tuple(_refused(attempt) for attempt in attempts)


def chat_body(data: bytes) -> Hashable:
    """A chat body is refused as InvalidRequest, or becomes a submission that can be stored, and is read again as the same."""
    try:
        asked = parse_chat_request(data)
    except InvalidRequest as error:
        msgspec.json.encode(error.failure())
        return error.code
    stored = msgspec.json.encode(asked)
    assert not nested_deeper(msgspec.json.decode(stored), 140)
    again = parse_chat_request(msgspec.json.encode({**asked.submission.body, "model": asked.submission.model}))
    assert again.submission.body == asked.submission.body
    return (asked.stream, frozenset(asked.submission.body))


def task_body(data: bytes) -> Hashable:
    """Bodies of the native routes are refused with 400 or 422, or can be stored."""
    outcomes = []
    for model in (bodies.SubmitBody, bodies.ReasonBody, bodies.DecisionBody, bodies.TitleBody):
        try:
            body = bodies.parse_body(model, data, required=model is not bodies.ReasonBody)
            if isinstance(body, bodies.SubmitBody):
                msgspec.json.encode(bodies.submission(body, bodies.ModelChoice("m", {}).of(body), "s"))
            msgspec.json.encode(body.model_dump())
            outcomes.append("taken")
        except InvalidRequest as error:
            assert error.status in (400, 422)
            msgspec.json.encode(error.message)
            outcomes.append(error.code)
    return tuple(outcomes)


def websocket_message(data: bytes) -> Hashable:
    """A message of a WebSocket is an operation with a position and types that can be asked for, or a refusal."""
    text = data.decode("utf-8", "replace")
    try:
        operation = parse_operation(text)
        asked = [getattr(operation, name, None) for name in ("position", "wanted")]
    except HeadgateError as error:
        assert error.status == 400
        return error.code
    assert isinstance(operation, Operation)
    return (type(operation).__name__, asked[0] is None)


def script(data: bytes) -> Hashable:
    """A script is refused as InvalidRequest with its place, or has a meaning, and the same one when it is read again."""
    text = data.decode("utf-8", "replace")
    try:
        meant = parse_script(text)
    except InvalidRequest as error:
        assert error.code == "invalid_script", error
        return error.message.partition(":")[2][:20]
    assert parse_script(text) == meant
    return repr(meant)[:60]


def grpc_publish(data: bytes) -> Hashable:
    """A publication is no message, refused as InvalidRequest, or of events that every door can show."""
    try:
        request = PublishRequest.FromString(data)
    except DecodeError:
        return "no message"
    try:
        publication = _publication(request)
        _check(publication, of_a_step=False)
        stored = [_encoded(_event(event, _TIMESTAMP)) for event in publication.events]
    except InvalidRequest as error:
        msgspec.json.encode(error.failure())
        return error.param
    for seq, body in enumerate(stored, 1):
        assert Updates("task-1").encode(Entry(seq, 1, body))
        assert encode(Entry(seq, 1, body).event) == body
    return len(stored)


def grpc_request(data: bytes) -> Hashable:
    """A request to read or to submit is no message, refused with a 4xx, or can be carried out."""
    try:
        asked, task = StreamRequest.FromString(data), SubmitTaskRequest.FromString(data)
    except DecodeError:
        return "no message"
    body = {"query": task.query, "context": plain(task.context)}
    return (
        _refused(lambda: position_of(asked)),
        _refused(lambda: wanted_types(asked.types)),
        _refused(lambda: bodies.parse_body(bodies.SubmitBody, msgspec.json.encode(body))),
    )


def configuration(data: bytes) -> Hashable:
    """A configuration is valid, or refused as a ConfigError that says where."""
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        file.write(data)
        file.flush()
        try:
            settings = load(Path(file.name), environ={"HEADGATE_API_KEY": "k"})
        except ConfigError as error:
            assert error.lines
            return error.lines[0].partition(": ")[2][:30]
    return len(settings.model_dump_json())


def _refused(attempt: Callable[[], object]) -> Hashable:
    try:
        attempt()
    except HeadgateError as error:
        assert 400 <= error.status < 500, error
        msgspec.json.encode(error.message.encode("utf-8", "replace").decode())
        return error.code
    return None


def ran(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited for something")


def _config_seed() -> bytes:
    return Path(__file__).parents[3].joinpath("config.yaml").read_bytes()


_CHAT = (
    b'{"model":"m","messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"'
    b',"image_url":{"url":"http://x"}}]},{"role":"assistant","tool_calls":[{"id":"c","type":"function","function":{"name":"f","argument'
    b's":"{}"}}]},{"role":"tool","tool_call_id":"c","content":"1"}],"stream":true,"temperature":0.5,"n":2,"stop":["x"],"metadata":{"a":"b'
    b'"},"headgate_options":{"events":true,"on_disconnect":30,"session_id":"s","context":{}},"response_format":{"type":"text"}}'
)
_KEYS = [
    b'"model":',
    b'"messages":',
    b'"query":',
    b'"seed":',
    b'"max_tokens":',
    b'"tools":[{"type":"function"}]',
    b'"stream_options":{',
]

TARGETS = {
    "position": Target(position, [b"1763640000000-17", b"17", b"0", b"", b"1-1-1", b"-5", "١٢".encode(), b"0x1", b"1_0", b"+1"]),
    "stream query": Target(
        stream_query,
        [
            b"workflow_id=task-" + b"0" * 32 + b"&types=LLM_PARTIAL,X_A&last_event_id=1-1&names=raw\n5",
            b"limit=5&offset=1&status=RUNNING",
        ],
        [b"&", b"=", b"limit", b"offset", b"after", b"types", b"workflow_id", b"%ff", b"%00", b"last_event_id=", b"session_id="],
    ),
    "chat body": Target(chat_body, [_CHAT, b'{"model":"m","messages":[{"role":"user","content":"a"}]}'], _KEYS),
    "task body": Target(
        task_body,
        [
            b'{"query":"q","model":"m","session_id":"s","context":{"system_prompt":"p","x":[1]},"metadata":{"a":1},"model_tier":"small"}',
            b'{"workflow_id":"task-1","approval_id":"a","approved":true,"feedback":"f"}',
            b'{"reason":"r"}',
            b'{"title":"t"}',
            b"",
        ],
        _KEYS,
    ),
    "websocket message": Target(
        websocket_message,
        [
            b'{"op":"subscribe","workflow_id":"task-1","last_event_id":"1-1","types":["X_A"]}',
            b'{"op":"approve","approval_id":"a","approved":true}',
        ],
        [b'"op":', b'"last_event_id":', b'"types":["', b'"reason":"'],
    ),
    "script": Target(
        script,
        [
            b'/script\nsay 3 words; wait 200ms\ncall get_weather {"city": "Paris"}\n',
            b'#!script\nrepeat 3 { say "a" }\nfinish length\nusage none',
        ],
        [
            b"say ",
            b"words",
            b"tokens ",
            b"repeat 3 {",
            b"}",
            b"wait 1s",
            b"rate 5/s",
            b"once {",
            b"status 429",
            b"error ",
            b"choices 2",
            b"packets 3",
            b"newlines crlf",
            b"no ",
            b"usage ",
            b"cut mid",
            b"line 1MB",
            b"blank 1KB",
            b"hang",
            b"whole",
            b"; ",
            b"# c\n",
        ],
    ),
    "grpc publish": Target(
        grpc_publish,
        [
            PublishRequest(
                workflow_id="task-1",
                writer="w",
                attempt=1,
                producer_seq=1,
                events=[
                    PublishEvent(type="X_A", agent_id="a", message="m", payload_json=b'{"a":[1,{"b":null}]}'),
                    PublishEvent(type="PING"),
                ],
            ).SerializeToString(),
            PublishRequest(
                writer="w",
                attempt=1,
                producer_seq=1,
                events=[PublishEvent(type="PROGRESS", payload={"a": [1.0, {"b": True}], "c": None})],
            ).SerializeToString(),
        ],
    ),
    "grpc request": Target(
        grpc_request,
        [
            StreamRequest(workflow_id="task-1", types=["X_A"], last_event_id=5, last_stream_id="1-1").SerializeToString(),
            SubmitTaskRequest(query="q", context={"a": {"b": [1.0]}}).SerializeToString(),
        ],
    ),
    "configuration": Target(
        configuration,
        [
            _config_seed(),
            b"auth: {mode: keys, keys: [{key: a, name: b, tenant: c}]}\nmodels: {m: {plan: {agent: {upstream: demo}}}}\n",
        ],
        [
            b"${",
            b"}",
            b"${A:-",
            b"&a ",
            b"*a",
            b"<<: ",
            b"!!python/object:os.system ",
            b"!!binary ",
            b"? ",
            b"- ",
            b"|\n",
            b"512KiB",
            b"1e400",
        ],
    ),
}
