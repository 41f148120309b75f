"""Writing WebSocket messages (RFC 6455, section 5.2). Bytes in, bytes out.

Frames are made here and not by the HTTP library so that a message that a thousand readers get is framed once, and messages
that are ready together leave in one write. Only what a server sends: unmasked, unfragmented, never compressed.
"""

from __future__ import annotations

_TEXT, _CLOSE, _PONG = 0x81, 0x88, 0x8A
"""FIN, and the opcode."""
_EXTENDED_16, _EXTENDED_64 = 126, 127


def text(payload: bytes) -> bytes:
    """One text message. `payload` is UTF-8."""
    size = len(payload)
    if size < _EXTENDED_16:
        return bytes((_TEXT, size)) + payload
    if size < 1 << 16:
        return bytes((_TEXT, _EXTENDED_16, size >> 8, size & 0xFF)) + payload
    return bytes((_TEXT, _EXTENDED_64)) + size.to_bytes(8) + payload


def pong(payload: bytes) -> bytes:
    """The answer to a ping with the same payload, which is at most 125 bytes long."""
    return bytes((_PONG, len(payload))) + payload


def close(code: int) -> bytes:
    """The last frame, without words."""
    return bytes((_CLOSE, 2)) + code.to_bytes(2)
