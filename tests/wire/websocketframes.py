"""A reader of server WebSocket frames written from RFC 6455, section 5.2, and nothing else, to judge what we write."""

from __future__ import annotations

import struct
from typing import NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Frame(NamedTuple):
    opcode: int
    payload: bytes


def read(stream: bytes) -> list[Frame]:
    """All of `stream`, which must consist of whole, final, unmasked frames with the shortest possible length."""
    frames: list[Frame] = []
    while stream:
        first, size = stream[0], stream[1]
        assert first & 0xF0 == 0x80, "final, no extensions"
        assert size < 128, "servers do not mask"
        head = 2
        if size == 126:
            (size,), head = struct.unpack_from("!H", stream, 2), 4
            assert size > 125
        elif size == 127:
            (size,), head = struct.unpack_from("!Q", stream, 2), 10
            assert size > 0xFFFF
        assert len(stream) >= head + size, "a frame is cut"
        frames.append(Frame(first & 0x0F, stream[head : head + size]))
        stream = stream[head + size :]
    return frames
