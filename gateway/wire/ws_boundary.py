"""Where one WebSocket frame ends and the next begins, in what a server sends (RFC 6455, section 5.2). Bytes in, a yes or no out.

For whoever passes frames on unread and may want to put in one of its own, which is possible only between two.
"""

from __future__ import annotations

_SHORT = {126: 2, 127: 8}
"""Lengths that mean that the real one follows, in so many bytes."""


class Boundary:
    """`clear`: all that was fed so far is whole frames."""

    def __init__(self) -> None:
        self._left = 0
        self._head = b""

    @property
    def clear(self) -> bool:
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        """Frames of a server are not masked."""
        at = self._left
        if at >= len(data):
            self._left -= len(data)
            return
        if self._head:
            data, self._head = self._head + data, b""
        self._left = 0
        while at < len(data):
            length = data[at + 1] & 0x7F if at + 1 < len(data) else 0
            extended = _SHORT.get(length, 0)
            if at + 2 + extended > len(data) or at + 1 >= len(data):
                self._head = data[at:]
                return
            if extended:
                length = int.from_bytes(data[at + 2 : at + 2 + extended])
            at += 2 + extended + length
        self._left = at - len(data)
