"""Following a stream across connections: where the reader is, and what to do when a connection ends. No I/O.

A reader asks for what follows its position, takes what comes, and asks again after a loss; the server gives exactly what follows
a position, so nothing is missing and nothing comes twice. The pauses between attempts double from one second to thirty and start
over with every event. Only three things end it: the task's `STREAM_END`, a gap, and a refusal that another attempt cannot change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from headgate.errors import ClientError, Refused, ServerFailed, ServerGone, StreamGap
from headgate.events import Event
from orchestrator.events import EventType


class Backoff(msgspec.Struct, frozen=True):
    """The pauses between attempts to get a stream back. `attempts` without progress are made; None: as many as it takes."""

    first_s: float = 1.0
    longest_s: float = 30.0
    attempts: int | None = None

    def pause_s(self, failures: int) -> float:
        """After so many failures in a row, from 1."""
        return min(self.first_s * 2.0 ** min(failures - 1, 64), self.longest_s)


PATIENT = Backoff()


class Loss(NamedTuple):
    """A connection was lost, and after a pause there will be another attempt."""

    error: ClientError
    position: str
    pause_s: float


OnLoss = Callable[[Loss], None]
Gaps = Literal["raise", "skip"]


class _Gap(msgspec.Struct):
    missing_from: int
    missing_to: int | None = None
    resumes_at: int | None = None


class Reconnecting:
    """Where a reader of a stream is, and whether it should be connected again. `server_known`: somebody has answered at this
    address before, so that one who does not will come back."""

    def __init__(self, last_event_id: str | int | None, backoff: Backoff, server_known: bool) -> None:
        self.position = "" if last_event_id is None else str(last_event_id)
        """The last event taken: what `last_event_id` of another stream can be."""
        self.ended = False
        self._backoff = backoff
        self._known = server_known
        self._failures = 0

    def connected(self) -> None:
        self._known = True

    def reached(self, position: str) -> None:
        self.position, self._failures = position, 0

    def lost(self, error: ClientError) -> Loss:
        """A connection ended by `error`, which is raised if there should be no other."""
        if isinstance(error, Refused):
            if not error.passing:
                raise error
            self._known = True
        elif not isinstance(error, ServerGone) or not self._known:
            raise error
        self._failures += 1
        if self._backoff.attempts is not None and self._failures > self._backoff.attempts:
            raise error
        pause_s = self._backoff.pause_s(self._failures)
        if isinstance(error, Refused) and error.retry_after_s is not None:
            pause_s = max(pause_s, min(error.retry_after_s, self._backoff.longest_s))
        return Loss(error, self.position, pause_s)


def broken_off(message: str | None, payload: Mapping[str, Any]) -> ClientError:
    """A stream says that it breaks off, although what it tells of goes on."""
    retryable = bool(payload.get("retryable"))
    kind, status = (ServerFailed, 503) if retryable else (Refused, 400)
    return kind(status, message or "The stream broke off.", payload.get("code"))


def gap_of(payload: Mapping[str, Any]) -> StreamGap:
    gap = msgspec.convert(payload, _Gap)
    return StreamGap(gap.missing_from, gap.missing_to, gap.resumes_at)


class Following(Reconnecting):
    def __init__(
        self,
        workflow_id: str,
        *,
        types: Iterable[str] = (),
        last_event_id: str | int | None = None,
        gaps: Gaps = "raise",
        backoff: Backoff,
        server_known: bool,
    ) -> None:
        super().__init__(last_event_id, backoff, server_known)
        self.workflow_id = workflow_id
        self._types = ",".join(types)
        self._gaps = gaps

    def query(self) -> dict[str, str]:
        """What to ask the server for next."""
        asked = {"workflow_id": self.workflow_id, "types": self._types, "last_event_id": self.position}
        return {name: value for name, value in asked.items() if value}

    def take(self, events: Sequence[Event]) -> tuple[list[Event], ClientError | None]:
        """Those of `events` that are the task's, and what went wrong after them."""
        taken: list[Event] = []
        for event in events:
            if event.seq:
                taken.append(event)
                self.reached(event.stream_id)
            elif (error := self._aside(event)) is not None:
                return taken, error
            if event.type == EventType.STREAM_END:
                self.ended = True
                break
        return taken, None

    def _aside(self, event: Event) -> ClientError | None:
        """What is said to this reader only."""
        payload = event.payload or {}
        match event.type:
            case EventType.STREAM_GAP:
                gap = gap_of(payload)
                return None if self._gaps == "skip" and gap.resumes_at is not None else gap
            case EventType.ERROR_OCCURRED:
                return broken_off(event.message, payload)
            case _:
                return None
