"""A run's log between processes, read: an event stream whose every event is an entry exactly as it stands in the log.

    id: {ms}-{seq}          an entry; its data is the body, byte for byte
    event: gap              data is a `Gap`
    event: end              there is nothing after the reader's place, and there never will be

A stream that stops without an ending was cut, and is asked for again from the last entry. It is written by `gateway.wire.feed`.
Stricter than a reader of other people's streams has to be: no other fields, no CR, data on one line. No I/O.
"""

from __future__ import annotations

import msgspec

from orchestrator.events import Entry, Gap
from orchestrator.streamlog.log import Position

GAP, END = "gap", "end"


def target(run_id: str, position: Position, *, answers: bool = False) -> str:
    """Where a run's log is read after this position. `answers` as in `Engine.subscribe`."""
    return f"/runs/{run_id}/feed?after={position.text}{'&answers=1' if answers else ''}"


class FeedReader:
    """Bytes in, however they were cut into packets; items out. `ended` once the last one has been returned."""

    def __init__(self) -> None:
        self.ended = False
        self._tail = b""

    def feed(self, data: bytes) -> list[Entry | Gap]:
        """What these bytes complete. Raises ValueError for bytes that are no feed."""
        blocks = (self._tail + data).split(b"\n\n")
        self._tail = blocks.pop()
        items: list[Entry | Gap] = []
        for block in blocks:
            head, found, body = block.partition(b"\ndata: ")
            # Comments, which keep the connection alive, stand in front of the next event.
            field, _, value = head[head.rfind(b"\n") + 1 :].partition(b": ")
            if found and field == b"id":
                ms, _, seq = value.partition(b"-")
                items.append(Entry(int(seq), int(ms), body))
            elif found and field == b"event" and value == GAP.encode():
                items.append(msgspec.json.decode(body, type=Gap))
            elif found and field == b"event" and value == END.encode():
                self.ended = True
            else:
                raise ValueError(f"not an event of a feed: {block[:60]!r}")
        if items:
            last = items[-1]
            self.ended = self.ended or (last.is_end if isinstance(last, Entry) else last.resumes_at is None)
        return items
