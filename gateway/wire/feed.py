"""The internal door's encoder: entries as they stand in the log, for a gateway that runs apart. Read by `orchestrator.http.feed`.

A stream that breaks off for a reason of this process says nothing of it and just has no ending: its reader asks again, elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.wire import sse
from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap
from orchestrator.http.feed import END, GAP


class FeedEncoder:
    """`wire.encoder.Encoder`."""

    begun = True

    def __init__(self) -> None:
        self.failure: Failure | None = None
        self.ended = False

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        last = items[-1]
        self.ended = last.is_end if isinstance(last, Entry) else last.resumes_at is None
        return b"".join([_entry(item) if isinstance(item, Entry) else _gap(item) for item in items])

    def conclude(self) -> bytes:
        self.ended = True
        return sse.frame(b"{}", event=END)

    def keepalive(self, silent_s: float) -> bytes:
        return sse.comment("")

    def interrupt(self, failure: Failure) -> bytes:
        self.failure, self.ended = failure, True
        return b""


def _entry(entry: Entry) -> bytes:
    return sse.verbatim(entry.body, id=b"%d-%d" % (entry.ms, entry.seq))


def _gap(gap: Gap) -> bytes:
    return sse.frame(msgspec.json.encode(gap), event=GAP)
