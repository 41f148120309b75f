"""Inputs made from inputs: bytes flipped, taken out, repeated, exchanged for what parsers trip over, and two spliced into one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

TROUBLE = [
    b"\0",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\xff",
    b"\xed\xa0\x80",
    "\u2028".encode(),
    b"\xc2\x85",
    b"\xef\xbb\xbf",
    "٣".encode(),
]
TROUBLE += [
    b'"',
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[" * 200,
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"18446744073709551616",
]
TROUBLE += [b"9223372036854775807", b"9" * 5000, b"1.5", b"-0", b" ", b"\t", b",", b":", b".", b"-", b"=", b"%00", b"A" * 300]
MAX_BYTES = 4_000


class Mutation:
    """All that is random comes from `seed`."""

    def __init__(self, seed: int, words: Sequence[bytes] = ()) -> None:
        self._random = random.Random(seed)
        self._words = [*TROUBLE, *words]

    def of(self, pool: Sequence[bytes]) -> bytes:
        """Something new from what is there."""
        data = self._random.choice(pool)
        ways: list[Callable[[bytes, Sequence[bytes]], bytes]] = [
            self._insert,
            self._insert,
            self._replace,
            self._flip,
            self._cut,
            self._repeat,
            self._splice,
            self._move,
        ]
        for _ in range(self._random.choice((1, 1, 1, 2, 4, 8))):
            data = self._random.choice(ways)(data, pool)
        return data[:MAX_BYTES]

    def _place(self, data: bytes) -> int:
        return self._random.randint(0, len(data))

    def _span(self, data: bytes) -> tuple[int, int]:
        start = self._place(data)
        return start, min(len(data), start + self._random.choice((1, 1, 2, 4, 16, 64, 1000)))

    def _insert(self, data: bytes, _: Sequence[bytes]) -> bytes:
        at = self._place(data)
        return data[:at] + self._random.choice(self._words) + data[at:]

    def _replace(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        return data[:start] + self._random.choice(self._words) + data[end:]

    def _flip(self, data: bytes, _: Sequence[bytes]) -> bytes:
        if not data:
            return bytes([self._random.randrange(256)])
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]

    def _cut(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        return data[:start] + data[end:]

    def _repeat(self, data: bytes, _: Sequence[bytes]) -> bytes:
        start, end = self._span(data)
        return data[:end] + data[start:end] * self._random.choice((1, 2, 10, 150)) + data[end:]

    def _splice(self, data: bytes, pool: Sequence[bytes]) -> bytes:
        other = self._random.choice(pool)
        return data[: self._place(data)] + other[self._place(other) :]

    def _move(self, data: bytes, _: Sequence[bytes]) -> bytes:
        (start, end), at = self._span(data), self._place(data)
        return data[:at] + data[start:end] + data[at:]


def smaller(data: bytes, fails: Callable[[bytes], bool]) -> bytes:
    """`data` without what is not needed to fail."""
    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data):
            less = data[:at] + data[at + size :]
            if fails(less):
                data = less
            else:
                at += size
        size //= 2
    return data
