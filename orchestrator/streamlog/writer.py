"""What an activity holds to write its events: batches by itself, never loses order, never grows without bound.

`emit` does not wait for the log. While one append is in flight, further events gather and leave in the next: one call per
event when the log is faster than the events, large batches when it is not. A writer that produces faster than the log takes
must `await room()` now and then; that is what pauses the reading of an upstream's socket.

An append whose reply was lost is sent again with the same `producer_seq`, so it takes effect once. An append the log refuses
ends the writer: `refused` is set, the owner is told once, and every later call raises it. So does one that failed in a way
nobody foresaw, because what became of it is not known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from orchestrator.clock import Clock
from orchestrator.errors import HeadgateError, LogRefused
from orchestrator.events import Event, encode
from orchestrator.metrics import Metrics
from orchestrator.runs import RunState
from orchestrator.streamlog.log import AppendForgotten, Log, LogUnavailable

_log = logging.getLogger(__name__)

MAX_BATCH_EVENTS = 512
MAX_BATCH_BYTES = 256 * 1024
_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 1.0


class EventWriter:
    """One writer's one attempt in one run. Use from one event loop; `end` or `abandon` it exactly once."""

    def __init__(
        self,
        log: Log,
        run_id: str,
        writer: str,
        attempt: int,
        *,
        lease_ms: int,
        metrics: Metrics,
        clock: Clock,
        on_refused: Callable[[HeadgateError], None],
        max_bytes: int = 1024 * 1024,
    ) -> None:
        self._log = log
        self._run_id = run_id
        self._writer = writer
        self._attempt = attempt
        self._lease_ms = lease_ms
        self._metrics = metrics
        self._clock = clock
        self._on_refused = on_refused
        self._max_bytes = max_bytes
        self._producer_seq = 0
        self._events: list[Event] = []
        self._bodies: list[bytes] = []
        self._bytes = 0
        self._state: RunState | None = None
        self._ends = False
        self._flushing: asyncio.Task[None] | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.refused: HeadgateError | None = None
        self.appended_at = 0.0
        """When the log last took an append, and with it renewed the lease; seconds since the epoch."""

    def emit(self, *events: Event, state: RunState | None = None) -> None:
        """Queue events for the next append, which moves the run to `state` if given."""
        if self.refused is not None:
            raise self.refused
        bodies = [encode(event) for event in events]
        self._events += events
        self._bodies += bodies
        self._bytes += sum(map(len, bodies))
        if state is not None:
            self._state = state
        if self._bytes >= self._max_bytes:
            self._room.clear()
        if self._flushing is None and self._bodies:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    @property
    def full(self) -> bool:
        """Whether `room()` would wait."""
        return self._bytes >= self._max_bytes

    async def room(self) -> None:
        """Wait until the buffer is below its bound."""
        await self._room.wait()
        if self.refused is not None:
            raise self.refused

    async def flush(self) -> None:
        """Wait until the log holds everything emitted so far. Raises what the log refused it with."""
        while self._flushing is not None:
            await asyncio.shield(self._flushing)
        if self.refused is not None:
            raise self.refused

    async def end(self, events: Sequence[Event], state: RunState) -> None:
        """Append what is queued and these events, the last of which is STREAM_END, and close the log.

        Everything that is queued leaves in appends before the closing one or together with it.
        """
        self.emit(*events, state=state)
        self._ends = True
        await self.flush()

    async def abandon(self) -> None:
        """Drop what is queued and stop, without an ending: another attempt goes on."""
        if self.refused is None:
            self.refused = LogRefused("This writer was abandoned.")
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait([self._flushing])

    async def _flush(self) -> None:
        try:
            while self._bodies:
                await self._append_once()
        except HeadgateError as error:
            self._refuse(error)
        except Exception:  # noqa: BLE001 - the edge of a task: its owner would wait for what never comes
            _log.exception("an append failed unforeseen", extra={"workflow_id": self._run_id})
            self._refuse(LogRefused("An append failed, and it is not known whether it took effect."))
        finally:
            self._flushing = None
            self._room.set()

    def _refuse(self, error: HeadgateError) -> None:
        self.refused = error
        self._on_refused(error)

    async def _append_once(self) -> None:
        events, bodies, size = self._take()
        state, ends = (None, False) if self._bodies else (self._state, self._ends)
        if state is not None:
            self._state = None
        self._producer_seq += 1
        started = self._clock.time()
        delay = _RETRY_FIRST_S
        while True:
            try:
                await self._log.append(
                    self._run_id,
                    self._writer,
                    self._attempt,
                    self._producer_seq,
                    bodies,
                    events=events,
                    state=state,
                    ends=ends,
                    lease_ms=self._lease_ms,
                )
                break
            except LogUnavailable:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MOST_S)
            except AppendForgotten:
                break  # applied when it was first sent; only its positions are unknown, and nobody here needs them
        self.appended_at = self._clock.time()
        self._metrics.append(len(bodies), self.appended_at - started)
        self._bytes -= size
        if self._bytes < self._max_bytes:
            self._room.set()

    def _take(self) -> tuple[list[Event], list[bytes], int]:
        """The next batch out of the buffer, within the bounds of one call."""
        if len(self._bodies) <= MAX_BATCH_EVENTS and self._bytes <= MAX_BATCH_BYTES:
            taken = self._events, self._bodies, self._bytes
            self._events, self._bodies = [], []
            return taken
        count = size = 0
        for body in self._bodies[:MAX_BATCH_EVENTS]:
            if count and size + len(body) > MAX_BATCH_BYTES:
                break
            count += 1
            size += len(body)
        taken = self._events[:count], self._bodies[:count], size
        del self._events[:count], self._bodies[:count]
        return taken
