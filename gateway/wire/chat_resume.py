"""Continuing a chat stream: which of its chunks the client has already.

A resumed stream is folded from the beginning of the log and stays mute up to the client's place, so what follows has the bytes
that the first connection would have received. That is only right if the fold saw every event up to that place: a hole before
it (the archive keeps no deltas), another event at the position, or a place that the stream never reaches is refused.
"""

from __future__ import annotations

from orchestrator.errors import Failure, InvalidPosition, PositionGone
from orchestrator.events import Entry
from orchestrator.streamlog.log import Position


class Resume:
    """Past the first `skip_chunks` chunks and past everything up to the event at `after`."""

    def __init__(self, skip_chunks: int = 0, after: Position | None = None) -> None:
        self._skip = skip_chunks
        self._after = after if after is not None and after.seq > 0 else None
        self._seq = 0

    @property
    def reached(self) -> bool:
        """The client's place is behind us; everything from here on is new to it."""
        return self._skip == 0 and self._after is None

    def unknown(self, entry: Entry) -> Failure | None:
        """To be asked for every entry in turn: why the client's place cannot be found, once that is certain."""
        hole = entry.seq != self._seq + 1
        self._seq = entry.seq
        if hole:
            return PositionGone().failure()
        after = self._after
        if after is not None and entry.seq == after.seq and after.ms not in (None, entry.ms):
            return PositionGone().failure()
        return None

    def rest(self, entry: Entry, chunks: list[bytes]) -> list[bytes]:
        """Those of the entry's chunks that the client does not have."""
        have = min(self._skip, len(chunks))
        self._skip -= have
        if (after := self._after) is not None:
            have = len(chunks)
            if entry.seq == after.seq:
                self._after = None
        return chunks[have:]

    def overshot(self, ending: Entry) -> Failure | None:
        """Why the place does not exist, if the stream ends before it. STREAM_END directly follows the ending and has no chunk."""
        after = self._after
        if after is not None and not (after.seq == ending.seq + 1 and after.ms in (None, ending.ms)):
            return PositionGone().failure()
        if self._skip:
            return InvalidPosition("The stream has fewer chunks than that.", param="starting_after").failure()
        return None
