"""A viewer at the gRPC door. It speaks just enough HTTP/2 for one call: grpcio's own client costs more than its server.

The windows are opened as far as they go at the beginning, so nothing is ever said about flow control again. Headers are sent
without compression and not looked at when they come back: a call that ends without an error has sent `STREAM_END` before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from struct import Struct

from bench.tally import STAMP, Tally
from bench.viewers import Viewer
from protos.streaming_pb2 import StreamRequest, TaskUpdate

_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = 4
_MOST = 2**31 - 1
_AT_FIRST = 2**16 - 1
"""A connection's window before anything was said about it."""

_HEAD = 9
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_METHOD = b"/shannon.orchestrator.StreamingService/StreamTaskExecution"

_setting = Struct(">HI").pack
_number = Struct(">I").pack
_message_head = Struct(">?I")


class GrpcViewer(Viewer):
    def __init__(self, tally: Tally, run_id: str, chunks: int, *, live: bool, to_the_end: bool) -> None:
        super().__init__(tally, run_id, chunks, live=live, to_the_end=to_the_end)
        self._received = b""
        self._messages = b""
        self._last_type = ""

    def request(self) -> bytes:
        message = StreamRequest(workflow_id=self._run_id).SerializeToString()
        return b"".join(
            (
                _PREFACE,
                _frame(_SETTINGS, 0, 0, _setting(_INITIAL_WINDOW_SIZE, _MOST)),
                _frame(_WINDOW_UPDATE, 0, 0, _number(_MOST - _AT_FIRST)),
                _frame(_HEADERS, _END_HEADERS, 1, _headers()),
                _frame(_DATA, _END_STREAM, 1, _message_head.pack(False, len(message)) + message),
            )
        )

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        for kind, flags, payload in self._frames(data):
            if kind == _DATA:
                for message in self._whole_messages(payload):
                    update = TaskUpdate.FromString(message)
                    self._last_type = update.type
                    stamp = STAMP.fullmatch(update.message.encode()) if update.type == "LLM_PARTIAL" else None
                    self._event(update.seq, stamp[1] if stamp else None, now)
            elif kind == _HEADERS:
                if not self._joined_at:
                    self._join(not flags & _END_STREAM, payload)
                if flags & _END_STREAM:
                    self._end(complete=self._last_type == "STREAM_END")
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._transport.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))

    def _frames(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        received, at = self._received + data, 0
        while len(received) - at >= _HEAD:
            end = at + _HEAD + int.from_bytes(received[at : at + 3])
            if end > len(received):
                break
            yield received[at + 3], received[at + 4], received[at + _HEAD : end]
            at = end
        self._received = received[at:]

    def _whole_messages(self, payload: bytes) -> Iterator[bytes]:
        messages, at = self._messages + payload, 0
        while len(messages) - at >= _message_head.size:
            _, size = _message_head.unpack_from(messages, at)
            end = at + _message_head.size + size
            if end > len(messages):
                break
            yield messages[at + _message_head.size : end]
            at = end
        self._messages = messages[at:]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + _number(stream) + payload


def _headers() -> bytes:
    """RFC 7541: two entries of the static table, then names and values as they are."""
    named = {b":path": _METHOD, b":authority": b"bench", b"content-type": b"application/grpc", b"te": b"trailers"}
    return b"\x83\x86" + b"".join(b"\0" + _string(name) + _string(value) for name, value in named.items())


def _string(text: bytes) -> bytes:
    """Shorter than 127 bytes, not Huffman-coded."""
    return bytes((len(text),)) + text
