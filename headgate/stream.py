"""Streams as ordinary iterators that outlive their connections."""

from __future__ import annotations

from collections import deque
from typing import Generic, Self, TypeVar

from headgate.async_stream import AsyncEventStream
from headgate.events import Event
from headgate.loop_thread import LoopThread
from headgate.watching import AsyncWatch

T = TypeVar("T")


class EventStream:
    """As `AsyncEventStream`. Whatever has arrived is taken over at once: a fast stream does not cross threads for every event."""

    def __init__(self, thread: LoopThread, stream: AsyncEventStream) -> None:
        self._thread = thread
        self._stream = stream
        self._ready: deque[Event] = deque()
        self.position = stream.position
        """Of the last event that was given out: what `last_event_id` of another stream can be."""

    @property
    def workflow_id(self) -> str:
        return self._stream.workflow_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if not self._ready:
            self._ready.extend(self._thread.run(self._stream.next_batch()))
        if not self._ready:
            raise StopIteration
        event = self._ready.popleft()
        self.position = event.stream_id
        return event

    def close(self) -> None:
        self._ready.clear()
        self._thread.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Watch(Generic[T]):
    """As `AsyncWatch`."""

    def __init__(self, thread: LoopThread, watch: AsyncWatch[T]) -> None:
        self._thread = thread
        self._watch = watch

    @property
    def position(self) -> str:
        return self._watch.position

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        for item in self._thread.run(self._watch.some()):
            return item
        raise StopIteration

    def close(self) -> None:
        self._thread.run(self._watch.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
