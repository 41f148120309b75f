"""Reading an event stream: bytes in, the data of whole events out. Knows no socket and no JSON.

It promises the same events however the bytes were cut into packets, and memory bounded by the longest event. Lines end at CR,
LF or CRLF and nowhere else (WHATWG HTML, section 9.2.6), so U+2028 inside JSON is text. Names, ids and retry times of events
are not kept: no chat completion uses them.
"""

from __future__ import annotations

from orchestrator.upstreams.upstream import UpstreamGarbled

_BOM = b"\xef\xbb\xbf"
_DATA, _END = b"data: ", b"\n\n"


class EventStreamReader:
    """Feed it what the socket brought; it returns the data of every event that this completed.

    An event, finished or not, that is longer than allowed is a `failure`. Those before it are still returned.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self.failure: UpstreamGarbled | None = None
        self._max = max_event_bytes
        self._tail = bytearray()
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[bytes]:
        """Nothing more comes after a failure."""
        if self.failure is not None:
            return []
        if self._at_start:
            data = self._without_bom(data)
        if self._after_cr or b"\r" in data:
            data = self._with_lf_only(data)
        if not self._ends_an_event(data):
            self._tail += data
            self._check(len(self._tail))
            return []
        whole = bytes(self._tail) + data if self._tail else data
        head, _, tail = whole.rpartition(_END)
        events = head[len(_DATA) :].split(_END + _DATA)
        if head.startswith(_DATA) and head.count(b"\n") == (len(events) - 1) * len(_END) and len(whole) <= self._max:
            self._tail = bytearray(tail)
            return events  # one line of data each, as nearly all servers send nearly always
        blocks = whole.split(b"\n\n")
        self._tail = bytearray(blocks.pop())
        return self._data_of(blocks)

    def rest(self) -> bytes:
        """What came after the last whole event. Worth a look when a server closes without the final blank line."""
        return bytes(self._tail)

    def _ends_an_event(self, data: bytes) -> bool:
        return b"\n\n" in data or (data[:1] == b"\n" and self._tail[-1:] == b"\n")

    def _data_of(self, blocks: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for block in blocks:
            if not self._check(len(block)):
                return events
            if block and (data := event_data(block)) is not None:
                events.append(data)
        self._check(len(self._tail))
        return events

    def _with_lf_only(self, data: bytes) -> bytes:
        """A CR counts at once; the LF that completes a CRLF, perhaps in the next packet, is then dropped."""
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data[-1:] == b"\r"
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _without_bom(self, data: bytes) -> bytes:
        data = bytes(self._tail) + data
        self._tail.clear()
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._tail += data
            return b""
        self._at_start = False
        return data.removeprefix(_BOM)

    def _check(self, size: int) -> bool:
        if size > self._max:
            self.failure = UpstreamGarbled(f"The upstream sent an event of more than {self._max} bytes.")
            self._tail.clear()
        return self.failure is None


def event_data(block: bytes) -> bytes | None:
    """The data of one event, its lines joined by LF; None for comments and for events without data."""
    lines = []
    for line in block.split(b"\n"):
        if line[:5] == b"data:":
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line == b"data":
            lines.append(b"")
    return b"\n".join(lines) if lines else None
