"""A task's events as an asynchronous iterator that outlives its connections."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Self

from headgate.connection import Connection
from headgate.errors import ClientError, ServerGone
from headgate.events import Event
from headgate.following import Following, OnLoss
from headgate.reading import Transport


class AsyncEventStream:
    """Iterate over it. It ends with the task's `STREAM_END`, and raises StreamGap, Refused, ServerGone or BadAnswer.

    Its connection is closed when it is over, when it is closed, and when nobody holds it any more: leaving the loop is enough.
    """

    def __init__(self, connection: Connection, following: Following, transport: Transport, on_loss: OnLoss | None) -> None:
        self.workflow_id = following.workflow_id
        self.position = following.position
        """Of the last event that was given out: what `last_event_id` of another stream can be."""
        self._batches = _batches(connection, following, transport, on_loss)
        self._ready: deque[Event] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._ready:
            self._ready.extend(await anext(self._batches))
        event = self._ready.popleft()
        self.position = event.stream_id
        return event

    async def next_batch(self) -> list[Event]:
        """All that is there, at least one event; nothing at the end. For callers who keep account of the position themselves."""
        return await anext(self._batches, [])

    async def aclose(self) -> None:
        self._ready.clear()
        await self._batches.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _batches(
    connection: Connection, following: Following, transport: Transport, on_loss: OnLoss | None
) -> AsyncGenerator[list[Event], None]:
    """Holds no reference to the stream, so that a stream that nobody holds ends at once."""
    while not following.ended:
        try:
            async with connection.reading(transport, following.query()) as reading:
                following.connected()
                while (batch := await reading.next()) is not None:
                    taken, error = following.take(batch)
                    if taken:
                        yield taken
                    if error is not None:
                        raise error
                    if following.ended:
                        return
            raise ServerGone(f"The connection to {connection.url} was lost.")
        except ClientError as error:
            loss = following.lost(error)
        if on_loss is not None:
            on_loss(loss)
        await asyncio.sleep(loss.pause_s)
