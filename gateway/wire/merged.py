"""Several runs as one stream: a subscription to all of them that is its own encoder, with one cursor for all.

The cursor is the position in each run, in the order in which the runs were asked for, separated by commas; every event carries
it as its `id`. A run that has ended is told by its STREAM_END; when all have, the stream says `done` and ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from gateway.wire import sse
from orchestrator.engine import Subscription
from orchestrator.errors import Failure, InvalidPosition
from orchestrator.events import Entry, EventType, Gap
from orchestrator.streamlog.log import BEGINNING, Position, parse_position

_encode = msgspec.json.Encoder().encode
_LONGEST_S = 3600.0

Shown = Callable[[Entry], Iterator[tuple[str, bytes]]]
"""What is told of an entry of one run: names of events and their JSON."""


class Strand:
    """One of the runs: where its reader stands, and how its entries are told. `hidden` is what the reader has already."""

    def __init__(self, run_id: str, subscription: Subscription, shown: Shown, position: Position, hidden: int = 0) -> None:
        self.run_id = run_id
        self.subscription = subscription
        self.shown = shown
        self.position = position
        self.hidden = hidden


class Merged:
    """`engine.Subscription` and `wire.encoder.Encoder` at once: what `next` returned last is what `encode` is given."""

    begun = True

    def __init__(self, strands: Sequence[Strand]) -> None:
        self.failure: Failure | None = None
        self.ended = not strands
        self._strands = strands
        self._reading: dict[asyncio.Task[Sequence[Entry | Gap]], Strand] = {}
        self._told: Strand | None = None
        self._open = set(strands)

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        for strand in self._open - set(self._reading.values()):
            self._reading[asyncio.create_task(strand.subscription.next(_LONGEST_S))] = strand
        if not self._reading:
            return ()
        done, _ = await asyncio.wait(self._reading, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._told = self._reading.pop(task)
            if items := task.result():
                return items
            if self._told.subscription.ended:
                self._end(self._told)
        return ()

    async def close(self) -> None:
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        strand = self._told
        assert strand is not None
        frames = [frame for item in items for frame in self._frames(strand, item)]
        if self.ended:
            frames.append(sse.frame(b"[DONE]", event="done", id=self._cursor()))
        return b"".join(frames)

    def conclude(self) -> bytes:
        self.ended = True
        return sse.frame(b"[DONE]", event="done", id=self._cursor())

    def keepalive(self, silent_s: float) -> bytes:
        return sse.comment("keepalive")

    def interrupt(self, failure: Failure) -> bytes:
        self.failure, self.ended = failure, True
        facts = {"scope": "stream", "code": failure.code, "message": failure.message, "retryable": failure.retryable}
        return sse.frame(_encode(facts), event=EventType.ERROR_OCCURRED)

    def _frames(self, strand: Strand, item: Entry | Gap) -> Iterator[bytes]:
        if isinstance(item, Gap):
            payload: dict[str, Any] = msgspec.structs.asdict(item)
            facts = {"workflow_id": strand.run_id, "type": EventType.STREAM_GAP, "payload": payload}
            yield sse.frame(_encode(facts), event=EventType.STREAM_GAP)
            if item.resumes_at is None:
                self._end(strand)
            return
        told = list(strand.shown(item))
        if item.seq > strand.hidden:
            strand.position = Position(item.seq, item.ms)
            for name, json in told:
                yield sse.frame(json, event=name, id=self._cursor())
        if item.is_end:
            self._end(strand)

    def _end(self, strand: Strand) -> None:
        self._open.discard(strand)
        self.ended = not self._open

    def _cursor(self) -> str:
        return ",".join(strand.position.text for strand in self._strands)


def parse_cursor(text: str | None, count: int) -> list[Position]:
    """The positions of so many runs; none given is the beginning of all. Raises InvalidPosition."""
    if not text:
        return [BEGINNING] * count
    parts = text.split(",")
    if len(parts) != count:
        raise InvalidPosition(f"The cursor of this stream has {count} positions, one for each run, separated by commas.")
    return [parse_position(part) for part in parts]
