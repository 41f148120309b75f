"""The native doors as their clients know them: each with a client of another make, all giving the same events.

Bytes over HTTP for the event stream and the REST routes, the `websockets` library, and stubs made from the `.proto` files. What a
door shows is turned into the one envelope and into nothing more, so that what the doors say can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPResponse
from typing import Any, NoReturn, Protocol
from urllib.parse import urlencode

import grpc
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from compat_tests.raw import TIMEOUT_S, Answer, Raw, headers_of
from protos import orchestrator_pb2 as tasks
from protos.events_pb2_grpc import EventServiceStub
from protos.orchestrator_pb2_grpc import OrchestratorServiceStub
from protos.streaming_pb2 import StreamRequest, TaskUpdate
from protos.streaming_pb2_grpc import StreamingServiceStub
from tests.wire.eventstream import read

TASKS, SSE, WS = "/api/v1/tasks", "/api/v1/stream/sse", "/api/v1/stream/ws"
MISSING = f"task-{'0' * 32}"

Event = dict[str, Any]
"""An envelope (native.md §1)."""

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
}


class Refused(Exception):
    """The door did not open, or what was asked was not done. `status` is HTTP's, or what gRPC's stands for."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class BrokenOff(Exception):
    """The stream ended before its run did. `how`: what the door said, in its own words."""

    def __init__(self, how: object) -> None:
        super().__init__(how)
        self.how = how


class Server:
    """One Headgate at all its doors, on behalf of one key."""

    def __init__(self, url: str, rpc_port: int, key: str | None = None) -> None:
        self.url = url
        self.raw = Raw(url, key)
        self.headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.metadata = [] if key is None else [("x-api-key", key)]
        # The text of a long answer is one message, and clients take 4 MiB unless told otherwise.
        self.channel = grpc.insecure_channel(f"127.0.0.1:{rpc_port}", [("grpc.max_receive_message_length", -1)])
        # The generated stubs have no types.
        self.streams: Any = StreamingServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = OrchestratorServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.events: Any = EventServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.channel.close()

    def submit(self, model: str, query: str, **fields: Any) -> str:
        """A task's id. It goes on whatever becomes of its submitter."""
        answer = self.raw.send("POST", TASKS, {"query": query, "model": model, **fields})
        assert answer.status == 200, answer
        return str(answer.json["task_id"])

    def log(self, run: str) -> list[Event]:
        """All events that there are."""
        return list(self.page(run, limit=1000)["events"])

    def page(self, run: str, **query: Any) -> Any:
        answer = self.raw.send("GET", f"{TASKS}/{run}/events?{urlencode(query)}")
        assert answer.status == 200, answer
        return answer.json

    def task(self, run: str) -> Any:
        return self.raw.send("GET", f"{TASKS}/{run}").json

    @contextmanager
    def socket(self, run: str, *, origin: str | None = None, key: bool = True, **query: str) -> Iterator[ClientConnection]:
        """A WebSocket on a run. Raises Refused."""
        url = f"{self.url.replace('http', 'ws', 1)}{WS}?{urlencode({'workflow_id': run, **query})}"
        headers = dict(self.headers if key else {}) | ({"Origin": origin} if origin else {})
        try:
            socket = connect(url, additional_headers=headers, proxy=None, max_size=None, open_timeout=TIMEOUT_S, close_timeout=5)
        except InvalidStatus as refusal:
            answer = refusal.response
            raise Refused(answer.status_code, json.loads(answer.body)["error"]["code"]) from None
        with socket:
            yield socket


class Door(Protocol):
    name: str

    def read(
        self, server: Server, run: str, after: str = "", types: Sequence[str] = ()
    ) -> AbstractContextManager[Iterator[Event]]:
        """The events after a position, as they come, up to the end that the door gives the stream.

        Raises Refused when it opens, BrokenOff when the stream ends and its run has not.
        """

    def shows(self, event: Event) -> Event:
        """What this door can show of an event of the log."""

    def ask(self, server: Server, run: str, op: str, reason: str) -> None:
        """Ask a run to `cancel`, `pause` or `resume`. Raises Refused."""


class EventStream:
    """`GET /api/v1/stream/sse`, and the REST routes beside it."""

    name = "sse"

    @contextmanager
    def read(self, server: Server, run: str, after: str = "", types: Sequence[str] = ()) -> Iterator[Iterator[Event]]:
        query = {"workflow_id": run, "last_event_id": after, "types": ",".join(types)}
        with server.raw.open("GET", f"{SSE}?{urlencode(query)}") as response:
            if response.status != 200:
                _refuse(response)
            yield self._events(response)

    def shows(self, event: Event) -> Event:
        return {"type": "STREAM_END", "stream_id": event["stream_id"]} if event["type"] == "STREAM_END" else event

    def ask(self, server: Server, run: str, op: str, reason: str) -> None:
        with server.raw.open("POST", f"{TASKS}/{run}/{op}", {"reason": reason}) as response:
            if response.status != 202:
                _refuse(response)

    def _events(self, response: HTTPResponse) -> Iterator[Event]:
        event: Event = {}
        for frame in sse_frames(response):
            for name, data, event_id in [(got.event, got.data, got.id) for got in read(frame)]:
                if name == "done":
                    yield {"type": "STREAM_END"} | ({"stream_id": event_id} if event_id else {})
                    assert response.read() == b"", "the stream goes on after its end"
                    return
                event = json.loads(data)
                assert event.get("stream_id", "") == event_id
                for more in ("delta", "response", "metadata"):  # what this door adds, and its own tests look at
                    event.pop(more, None)
                yield event
        raise BrokenOff(event.get("payload"))


def sse_frames(response: HTTPResponse) -> Iterator[bytes]:
    """Each with its blank line, as they come; comments between them are dropped."""
    lines: list[bytes] = []
    for line in iter(response.readline, b""):
        if not line.startswith(b":"):
            lines.append(line)
        if line == b"\n":
            yield b"".join(lines)
            lines = []


def _refuse(response: HTTPResponse) -> NoReturn:
    answer = Answer(response.status, headers_of(response), response.read())
    raise Refused(answer.status, answer.error["code"])


class WebSocket:
    """`GET /api/v1/stream/ws`."""

    name = "websocket"

    @contextmanager
    def read(self, server: Server, run: str, after: str = "", types: Sequence[str] = ()) -> Iterator[Iterator[Event]]:
        with server.socket(run, last_event_id=after, types=",".join(types)) as socket:
            yield self._events(socket)

    def shows(self, event: Event) -> Event:
        return event

    def ask(self, server: Server, run: str, op: str, reason: str) -> None:
        with server.socket(run, types="X_NOTHING") as socket:
            try:
                answer = operate(socket, op=op, reason=reason)
            except ConnectionClosedOK:  # which says that there is nothing more to ask of this run
                raise Refused(409, "run_ended") from None
        if not answer["ok"]:
            raise Refused(409, answer["error"]["code"])

    def _events(self, socket: ClientConnection) -> Iterator[Event]:
        try:
            while True:
                yield json.loads(socket.recv(timeout=TIMEOUT_S))
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if code != 1000:
                raise BrokenOff(code) from None


def operate(socket: ClientConnection, **operation: Any) -> Any:
    """The answer to an operation; events before it are passed over."""
    socket.send(json.dumps(operation))
    while "op" not in (message := json.loads(socket.recv(timeout=TIMEOUT_S))):
        pass
    return message


class Rpc:
    """`StreamingService` and `OrchestratorService`."""

    name = "grpc"

    @contextmanager
    def read(self, server: Server, run: str, after: str = "", types: Sequence[str] = ()) -> Iterator[Iterator[Event]]:
        calls: list[Any] = []

        def ask(after: str) -> Any:
            seq = re.fullmatch("[0-9]{0,16}", after)
            place: Any = {"last_event_id": int(after or 0)} if seq else {"last_stream_id": after}
            request = StreamRequest(workflow_id=run, types=types, **place)
            calls.append(server.streams.StreamTaskExecution(request, metadata=server.metadata, timeout=TIMEOUT_S))
            if "x-workflow-id" not in dict(calls[-1].initial_metadata()):
                refuse_rpc(calls[-1])
            return calls[-1]

        def events(call: Any) -> Iterator[Event]:
            try:
                for update in call:
                    yield envelope(update)
            except grpc.RpcError:
                if call.code() is not grpc.StatusCode.OUT_OF_RANGE:
                    raise BrokenOff(call.code()) from None
                gap = gap_of(call)
                yield {"workflow_id": run, "type": "STREAM_GAP", "payload": gap}
                if gap["resumes_at"] is None:
                    raise BrokenOff(call.code()) from None
                yield from events(ask(str(gap["resumes_at"] - 1)))

        try:
            yield events(ask(after))
        finally:
            for call in calls:
                call.cancel()

    def shows(self, event: Event) -> Event:
        return {name: value for name, value in event.items() if value != ""}  # to protobuf, an empty text is none

    def ask(self, server: Server, run: str, op: str, reason: str) -> None:
        method, request = {
            "cancel": (server.tasks.CancelTask, tasks.CancelTaskRequest),
            "pause": (server.tasks.PauseTask, tasks.PauseTaskRequest),
            "resume": (server.tasks.ResumeTask, tasks.ResumeTaskRequest),
        }[op]
        try:
            assert method(request(task_id=run, reason=reason), metadata=server.metadata, timeout=TIMEOUT_S).success
        except grpc.RpcError as error:
            refuse_rpc(error)


def refuse_rpc(call: Any) -> NoReturn:
    trailers = dict(call.trailing_metadata())
    raise Refused(_STATUSES[call.code()], trailers["x-error-code"])


def gap_of(call: Any) -> Mapping[str, int | None]:
    """The gap that a call's trailers tell of, as it is told in-band elsewhere."""
    trailers = dict(call.trailing_metadata())
    places = {"missing_from": "x-missing-from", "missing_to": "x-missing-to", "resumes_at": "x-resumes-at"}
    return {name: int(trailers[trailer]) if trailer in trailers else None for name, trailer in places.items()}


def envelope(update: TaskUpdate) -> Event:
    when = update.timestamp.ToDatetime()
    event: Event = {
        "workflow_id": update.workflow_id,
        "seq": update.seq,
        "stream_id": update.stream_id,
        "type": update.type,
        "agent_id": update.agent_id,
        "message": update.message,
        "timestamp": f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03}Z",
    }
    if update.payload_json:
        event["payload"] = json.loads(update.payload_json)
    return {name: value for name, value in event.items() if value != ""}


DOORS: Mapping[str, Door] = {door.name: door for door in (EventStream(), WebSocket(), Rpc())}
