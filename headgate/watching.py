"""What a server tells of tasks beside their own streams: progress, and the events of several at once, across lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Generic, Literal, Self, TypedDict, TypeVar

import msgspec

from gateway.wire.sse_decoder import ServerEvent
from headgate.answers import Usage
from headgate.connection import Connection
from headgate.errors import BadAnswer, ClientError, ServerGone
from headgate.events import Event
from headgate.following import OnLoss, Reconnecting, broken_off, gap_of
from orchestrator.events import EventType

T = TypeVar("T")

Read = Callable[[ServerEvent], T]
"""Raises ClientError for what is the end of a connection."""


class WatchOptions(TypedDict, total=False):
    """`last_event_id` is the position after which to begin. `on_loss` is told of lost connections."""

    last_event_id: str | int
    on_loss: OnLoss


class Result(msgspec.Struct, frozen=True):
    """What a task that completed came to."""

    success: bool
    output: Any = None
    usage: Usage | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A step that begins or ends, or the task itself, whose `step_name` is empty. See `docs/reference/progress.md`."""

    workflow_id: str
    step_name: str
    step_index: int
    step_type: str
    status: Literal["started", "completed", "failed", "cancelled"]
    progress: float
    session_id: str | None = None
    message: str | None = None
    error: str | None = None
    input: str | None = None
    output: str | None = None
    result: Result | None = None
    parallel_index: int | None = None
    parallel_total: int | None = None
    attempt: int | None = None
    branch: str | None = None
    timestamp: str = ""
    seq: int = 0


class AsyncWatch(Generic[T]):
    """Iterate over it, to the end of what is watched. Raises StreamGap, Refused, ServerGone or BadAnswer."""

    def __init__(
        self,
        connection: Connection,
        path: str,
        query: Mapping[str, str],
        read: Read[T],
        place: Reconnecting,
        on_loss: OnLoss | None,
    ) -> None:
        self.position = place.position
        """Of the last item that was given out: what `last_event_id` of another watch can be."""
        self._items = _items(connection, path, query, read, place, on_loss)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self.position, item = await anext(self._items)
        return item

    async def some(self) -> list[T]:
        """The next item; nothing at the end."""
        try:
            return [await anext(self)]
        except StopAsyncIteration:
            return []

    async def aclose(self) -> None:
        await self._items.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _items(
    connection: Connection, path: str, query: Mapping[str, str], read: Read[T], place: Reconnecting, on_loss: OnLoss | None
) -> AsyncGenerator[tuple[str, T], None]:
    """Each item with its position. Holds no reference to the watch, so that one that nobody holds ends at once."""
    while not place.ended:
        asked = {**query, "last_event_id": place.position} if place.position else query
        try:
            async with connection.listening(path, asked) as listening:
                place.connected()
                while (heard := await listening.hear()) is not None:
                    for said in heard:
                        if said.data == "[DONE]":
                            place.ended = True
                            return
                        item = read(said)
                        place.reached(said.id)
                        yield place.position, item
            raise ServerGone(f"The connection to {connection.url} was lost.")
        except ClientError as error:
            loss = place.lost(error)
        if on_loss is not None:
            on_loss(loss)
        await asyncio.sleep(loss.pause_s)


def progress_of(said: ServerEvent) -> Progress:
    if said.event == EventType.ERROR_OCCURRED:
        facts = _decoded(said, dict[str, Any])
        raise broken_off(facts.get("message"), facts)
    return _decoded(said, Progress)


def event_of(said: ServerEvent) -> Event:
    """An event of a merged stream. One that has no position is said to this reader only."""
    if said.event == EventType.ERROR_OCCURRED and (facts := _decoded(said, dict[str, Any])).get("scope") == "stream":
        raise broken_off(facts.get("message"), facts)
    event = _decoded(said, Event)
    if event.type == EventType.STREAM_GAP:
        raise gap_of(event.payload or {})
    return event


def _decoded(said: ServerEvent, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(said.data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadAnswer(f"An event cannot be read: {error}.") from None
