"""The native WebSocket: what only this door promises (native.md §4)."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from websockets.exceptions import ConnectionClosed

from compat_tests.conftest import FRIENDLY_PAGE
from compat_tests.doors import MISSING, TASKS, WS, Refused, Server, operate
from compat_tests.manifest import promise
from compat_tests.raw import TIMEOUT_S, script
from compat_tests.stage import Stage, staged
from gateway.errors import Draining, StreamGap
from gateway.wire.ws_messages import CloseCode, close_code
from orchestrator.errors import Failure

TEXT, CLOSE, PING = 1, 8, 9


@pytest.fixture(scope="session")
def ended(here: Server) -> str:
    run = here.submit("demo-none", script('tokens "a" "b" "c"'))
    with here.socket(run) as connection:
        assert json.loads(list(connection)[-1])["type"] == "STREAM_END"
    return run


def whole(server: Server, run: str, after: str) -> tuple[list[object], int | None]:
    """All messages, and the code that the socket is closed with."""
    with server.socket(run, last_event_id=after) as connection:
        messages = [json.loads(message) for message in connection]
    return messages, connection.close_code


@promise("ws.messages", "ws.ended")
def test_a_message_is_an_envelope_and_the_end_is_a_1000(here: Server, there: Server, ended: str) -> None:
    """native.md §4: one JSON text message per event, in the very bytes of the log."""
    page = here.raw.send("GET", f"{TASKS}/{ended}/events?limit=1000").body
    for server in (here, there):
        with server.socket(ended) as connection:
            assert connection.response is not None
            assert connection.response.headers["X-Workflow-ID"] == ended
            messages = list(connection)
        assert all(isinstance(message, str) for message in messages)
        assert page.startswith(b'{"events":[' + b",".join(str(message).encode() for message in messages) + b"]")
        assert connection.close_code == 1000


@promise("ws.position")
def test_a_position_is_taken_from_the_header_or_the_query(here: Server, ended: str) -> None:
    """native.md §4: the same query and the same resume as the event stream. The header wins."""
    log = here.log(ended)
    assert whole(here, ended, "3") == (log[3:], 1000)
    with upgraded(here, ended, "Last-Event-ID: 4", query="&last_event_id=1") as peer:
        assert [json.loads(payload) for opcode, payload in peer.frames() if opcode == TEXT] == log[4:]
    assert whole(here, ended, log[-1]["stream_id"]) == ([{"workflow_id": ended, "type": "STREAM_END"}], 1000)


@promise("ws.before-upgrade", "native.errors")
@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        (f"?workflow_id={MISSING}&last_event_id=x", 400),
        (f"?workflow_id={MISSING}&types=NO", 400),
        (f"?workflow_id={MISSING}", 404),
        ("?workflow_id=nobody", 404),
    ],
)
def test_what_is_refused_is_refused_before_the_upgrade(here: Server, query: str, status: int) -> None:
    """native.md §4: in plain HTTP."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    answer = here.raw.send("GET", WS + query, headers=upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert answer.status == status
    assert answer.error.keys() == {"code", "message", "request_id"}


@promise("ws.before-upgrade")
def test_whoever_speaks_no_websocket_is_told_so(here: Server, ended: str) -> None:
    """native.md §4: 400, and where the same events are over plain HTTP."""
    answer = here.raw.send("GET", f"{WS}?workflow_id={ended}")
    assert (answer.status, answer.error["code"]) == (400, "websocket_expected")


@promise("ws.origin")
def test_a_pages_origin_is_looked_at(there: Server) -> None:
    """native.md §4: a browser lets any page open a socket to any server."""
    with staged(there) as stage:
        for origin in (None, FRIENDLY_PAGE, there.url):
            with there.socket(stage.run, origin=origin) as connection:
                assert json.loads(connection.recv(TIMEOUT_S))["seq"] == 1
        for origin in ("https://evil.example.com", f"{FRIENDLY_PAGE}.evil.example", "null"):
            with pytest.raises(Refused) as refused, there.socket(stage.run, origin=origin):
                pass
            assert (refused.value.status, refused.value.code) == (403, "origin_not_allowed")


@promise("ws.approve", "rest.approvals")
def test_an_approval_is_decided_on_the_socket(here: Server) -> None:
    """native.md §4: once; whoever comes second is told so."""
    with staged(here) as stage, here.socket(stage.run, types="APPROVAL_REQUESTED,APPROVAL_DECISION") as connection:
        stage.ask_approval("approval-1")
        assert json.loads(connection.recv(TIMEOUT_S))["payload"]["approval_id"] == "approval-1"
        decision = {"op": "approve", "approval_id": "approval-1", "approved": False, "feedback": "no!"}
        connection.send(json.dumps(decision))
        said = [json.loads(connection.recv(TIMEOUT_S)) for _ in range(2)]
        assert {"op": "approve", "ok": True, "workflow_id": stage.run} in said
        decided = next(message for message in said if "type" in message)["payload"]
        assert (decided["approval_id"], decided["approved"], decided["feedback"]) == ("approval-1", False, "no!")
        again = operate(connection, **decision)
        assert (again["ok"], again["error"]["code"]) == (False, "approval_decided")


@promise("ws.subscribe")
def test_one_socket_watches_many_runs(here: Server, ended: str) -> None:
    """native.md §4: from any position, filtered, and no more when it is unwanted. The socket lives as long as one of them."""
    log = here.log(ended)
    with staged(here) as stage, here.socket(stage.run, types="X_SAID") as connection:
        assert operate(connection, op="subscribe")["error"]["code"] == "already_subscribed"
        wish = {"op": "subscribe", "workflow_id": ended, "last_event_id": log[1]["stream_id"], "types": ["LLM_OUTPUT"]}
        assert operate(connection, **wish) == {"op": "subscribe", "ok": True, "workflow_id": ended}
        shown = [event for event in log if event["type"] in ("LLM_OUTPUT", "WORKFLOW_COMPLETED", "STREAM_END")]
        assert [json.loads(connection.recv(TIMEOUT_S)) for _ in shown] == shown
        with staged(here) as other:
            assert operate(connection, op="subscribe", workflow_id=other.run, types=["X_SAID"])["ok"]
            for each in (stage, other, stage):
                each.say("X_SAID", "hear, hear")
                assert json.loads(connection.recv(TIMEOUT_S)) == each.log()[-1]
            assert operate(connection, op="unsubscribe", workflow_id=other.run)["ok"]
            other.say("X_SAID", "to nobody")
            assert operate(connection, op="unsubscribe", workflow_id=other.run)["error"]["code"] == "not_subscribed"
        stage.cancel()
        assert [json.loads(message)["type"] for message in connection] == ["WORKFLOW_CANCELLED", "STREAM_END"]
        assert connection.close_code == 1000


@promise("ws.subscribe", "doors.foreign-run")
def test_what_another_tenant_runs_is_out_of_reach(there: Server, mallory: Server) -> None:
    """design.md §1.8: for every operation that names a run."""
    with staged(mallory) as mine, staged(there) as theirs, mallory.socket(mine.run) as connection:
        for op in ("subscribe", "cancel", "pause", "resume", "unsubscribe"):
            hidden, missing = (operate(connection, op=op, workflow_id=run) for run in (theirs.run, MISSING))
            assert (hidden["ok"], hidden["error"]) == (False, missing["error"])


@promise("ws.answers")
@pytest.mark.parametrize(
    ("message", "op", "code"),
    [
        ('{"op":"dance"}', "dance", "unknown_operation"),
        ("hello", None, "invalid_message"),
        ("{}", None, "invalid_message"),
        (b'{"op":"cancel"}', None, "invalid_message"),
        ('{"op":"cancel","reasn":"x"}', "cancel", "invalid_message"),
        ('{"op":"resume"}', "resume", "run_not_paused"),
        ('{"op":"subscribe","workflow_id":"nobody"}', "subscribe", "run_not_found"),
        (f'{{"op":"subscribe","workflow_id":"{MISSING}","last_event_id":"x"}}', "subscribe", "invalid_position"),
    ],
)
def test_what_cannot_be_done_is_answered_and_the_stream_goes_on(
    waiting: Stage, message: str | bytes, op: str | None, code: str
) -> None:
    """native.md §4: `{op, ok, error}`, for unknown operations too."""
    with waiting.server.socket(waiting.run, types="X_SAID") as connection:
        connection.send(message)
        said = json.loads(connection.recv(TIMEOUT_S))
        while "ok" not in said:  # what earlier cases said
            said = json.loads(connection.recv(TIMEOUT_S))
        assert (said["op"], said["ok"], said["error"]["code"]) == (op, False, code)
        assert said["error"].keys() == {"code", "message"}
        waiting.say("X_SAID", f"{message!r}")
        assert json.loads(connection.recv(TIMEOUT_S))["message"] == f"{message!r}"


@pytest.fixture(scope="module")
def waiting(here: Server) -> Iterator[Stage]:
    with staged(here) as stage:
        yield stage


@promise("ws.too-large")
def test_a_message_of_64_kib_is_read_and_a_longer_one_closes(here: Server) -> None:
    """native.md §4: 1009."""
    with staged(here) as stage, here.socket(stage.run, types="X_SAID") as connection:
        connection.send(" " * (64 * 1024))
        assert json.loads(connection.recv(TIMEOUT_S))["error"]["code"] == "invalid_message"
        connection.send(" " * (64 * 1024 + 1))
        with pytest.raises(ConnectionClosed):
            connection.recv(TIMEOUT_S)
        assert connection.close_code == 1009


@promise("ws.ping")
def test_whoever_is_silent_is_asked_whether_he_is_there_and_found_out_if_not(forgetful: Server) -> None:
    """native.md §4: a ping every 20 s, and 45 s until a dead peer is noticed; here 0.4 s, and half as long for an answer."""
    with staged(forgetful) as stage:
        for alive in (True, False):
            with upgraded(forgetful, stage.run) as peer:
                begun = time.monotonic()
                frames = peer.frames()
                ping = next(payload for opcode, payload in frames if opcode == PING)
                if alive:
                    peer.pong(ping)
                    assert next(opcode for opcode, _ in frames) == PING, "it is asked again"
                else:
                    assert [opcode for opcode, _ in frames if opcode != CLOSE] == [], "nothing but an end"
                    assert time.monotonic() - begun < 3


@promise("ws.codes")
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (None, 1000),
        (Failure(Draining.code, "", True, 503), 1001),
        (Failure("invalid_api_key", "", False, 401), 1008),
        (Failure("forbidden", "", False, 403), 1008),
        (Failure("log_unavailable", "", True, 503), 1013),
        (Failure("internal_error", ""), 1013),
        (Failure(StreamGap.code, "", False, 410), 4408),
    ],
)
def test_a_close_code_says_what_to_do_next(failure: Failure | None, code: int) -> None:
    """native.md §4. Not seen from outside where nothing that a test may do brings it about: 1008 and 1013."""
    assert close_code(failure) == code
    assert CloseCode(code)


class Peer:
    """A WebSocket client that does nothing by itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.stream = connection.makefile("rb")

    def head(self) -> bytes:
        return b"".join(iter(self.stream.readline, b"\r\n"))

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcodes and payloads, until the server wants to close or hangs up."""
        opcode = 0
        while opcode != CLOSE and (head := self.stream.read(2)):
            opcode, size = head[0] & 0x0F, head[1]
            if size > 125:
                (size,) = struct.unpack(">H" if size == 126 else ">Q", self.stream.read(2 if size == 126 else 8))
            yield opcode, self.stream.read(size)

    def pong(self, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        self._connection.sendall(bytes((0x8A, 0x80 | len(payload))) + mask + masked)


@contextmanager
def upgraded(server: Server, run: str, *headers: str, query: str = "") -> Iterator[Peer]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), TIMEOUT_S) as connection:
        lines = [
            f"GET {WS}?workflow_id={run}{query} HTTP/1.1",
            f"Host: {address.netloc}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            *headers,
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        peer = Peer(connection)
        with peer.stream:
            head = peer.head()
            assert head.startswith(b"HTTP/1.1 101 "), head
            yield peer
