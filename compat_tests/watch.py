"""Readers who watch while a test does something else, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from compat_tests.doors import DOORS, Door, Event, Server
from compat_tests.model_server import WAIT_S


class Watch:
    """What a reader has seen so far. `events` is complete once `end` has returned."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = threading.Condition()
        self._reading: Future[None] = Future()

    def start(self, pool: ThreadPoolExecutor, read: Callable[[], Iterable[Event]]) -> None:
        self._reading = pool.submit(self._read, read)
        self._reading.add_done_callback(lambda _: self._tell())

    def until(self, type: str) -> Event:
        """The first event of this type, as soon as it has come."""
        return self.when(lambda event: bool(event["type"] == type), type)

    def when(self, wanted: Callable[[Event], bool], what: str = "what was waited for") -> Event:
        """The first event like this, as soon as it has come."""

        def found() -> Event | None:
            return next((event for event in self.events if wanted(event)), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._reading.done(), WAIT_S)
            event = found()
        if event is None and self._reading.done():
            self._reading.result()
        assert event is not None, f"{what} has not come: {[event['type'] for event in self.events]}"
        return event

    def end(self) -> list[Event]:
        """All events, when the stream has ended. Raises what ended it, if that was not its end."""
        self._reading.result(WAIT_S)
        return self.events

    def _read(self, read: Callable[[], Iterable[Event]]) -> None:
        for event in read():
            with self._news:
                self.events.append(event)
                self._news.notify_all()

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()


def reading(door: Door, server: Server, run: str, after: str = "", types: Sequence[str] = ()) -> Iterator[Event]:
    """The events of a stream that is opened for them."""
    with door.read(server, run, after, types) as events:
        yield from events


def seen(door: Door, server: Server, run: str, after: str = "", types: Sequence[str] = ()) -> list[Event]:
    """All that a door shows, up to its end."""
    return list(reading(door, server, run, after, types))


def shown(door: Door, events: Sequence[Event]) -> list[Event]:
    return [door.shows(event) for event in events]


@contextmanager
def watching() -> Iterator[Callable[[Callable[[], Iterable[Event]]], Watch]]:
    """Starts watches; on leaving, all of them must have ended."""
    with ThreadPoolExecutor(32, "watch") as pool:

        def start(read: Callable[[], Iterable[Event]]) -> Watch:
            watch = Watch()
            watch.start(pool, read)
            return watch

        yield start


@contextmanager
def everywhere(run: str, *servers: Server) -> Iterator[dict[tuple[Door, Server], Watch]]:
    """A watch at each native door of each server."""
    with watching() as start:
        yield {
            (door, server): start(lambda door=door, server=server: reading(door, server, run))  # type: ignore[misc]
            for door in DOORS.values()
            for server in servers
        }
