"""Reading an event stream: bytes in, events out. Knows no socket and no JSON.

The events are the same however the bytes were cut. Follows WHATWG HTML, section 9.2.6: lines end at CR, LF or CRLF and nowhere
else, one leading BOM is dropped, an event without data is not dispatched, an unfinished one at the end is dropped. Memory is
bounded by the longest event that is allowed.
"""

from __future__ import annotations

import codecs

import msgspec


class ServerEvent(msgspec.Struct, frozen=True):
    """One event: its name (`message` unless the stream says otherwise), its data, and the last id seen up to it."""

    data: str
    event: str = "message"
    id: str = ""


class EventTooLong(ValueError):
    """The stream sent an event longer than allowed."""


class Decoder:
    """Feed it what the socket brought; it returns the events that this completed."""

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self._max = max_event_bytes
        self._rest = bytearray()
        self._size = 0
        self._data: list[str] = []
        self._event = ""
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Raises EventTooLong."""
        events: list[ServerEvent] = []
        *lines, rest = self._one_kind_of_newline(chunk).split(b"\n")
        for line in lines:
            self._rest += line
            if not self._rest.startswith(b":"):  # keepalives may go on for days between two events
                self._size += len(self._rest)
            self._bound(0)
            self._line(bytes(self._rest), events)
            self._rest.clear()
        self._rest += rest
        self._bound(len(self._rest))
        return events

    def _one_kind_of_newline(self, chunk: bytes) -> bytes:
        """A CR ends its line at once; the LF that may follow it, perhaps in the next chunk, is then dropped."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk[-1:] == b"\r"
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk

    def _bound(self, unfinished: int) -> None:
        if self._size + unfinished > self._max:
            raise EventTooLong(f"an event of more than {self._max} bytes")

    def _line(self, line: bytes, events: list[ServerEvent]) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self.last_event_id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_ms = int(value)
            case _:  # a comment (its name is empty), or a field that the standard says to ignore
                pass

    def _dispatch(self, events: list[ServerEvent]) -> None:
        if self._data:
            events.append(ServerEvent("\n".join(self._data), self._event or "message", self.last_event_id))
        self._data, self._event, self._size = [], "", 0
