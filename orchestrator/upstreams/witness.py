"""What a scripted upstream saw of each call, for tests and fault drills: the other end's word for it that a call was closed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Literal

MAX_CALLS = 1000

Ending = Literal["completed", "cut", "failed", "cancelled"]


class ScriptedCall:
    """One call: what was asked, how many pieces were given, how and when (monotonic) it ended.

    `cancelled`: whoever asked closed it. `cut` and `failed`: the script said so.
    """

    def __init__(self, key: str, model: str, body: dict[str, Any], started: float) -> None:
        self.key = key
        self.model = model
        self.body = body
        self.started = started
        self.pieces = 0
        self.ending: Ending | None = None
        self.ended: float | None = None
        self.closed = asyncio.Event()

    def close(self, ending: Ending, now: float) -> None:
        """Only the first word counts: a socket that closes after the end changes nothing."""
        if self.ending is None:
            self.ending, self.ended = ending, now
            self.closed.set()


class Witness:
    """The latest calls, oldest first, and how often each key (a run, or a prompt) has been asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.calls: deque[ScriptedCall] = deque(maxlen=MAX_CALLS)
        self.clock = clock
        self._asked: Counter[tuple[str, str]] = Counter()
        self._arrived = asyncio.Event()

    def open(self, key: str, model: str, body: dict[str, Any], prompt: str = "") -> tuple[ScriptedCall, int]:
        """The record of a new call, and how many with the same key and prompt came before it."""
        earlier = self._asked.pop((key, prompt), 0)
        self._asked[key, prompt] = earlier + 1
        if len(self._asked) > MAX_CALLS:
            del self._asked[next(iter(self._asked))]
        call = ScriptedCall(key, model, body, self.clock())
        self.calls.append(call)
        self._arrived.set()
        return call, earlier

    def close(self, call: ScriptedCall, ending: Ending) -> None:
        call.close(ending, self.clock())

    async def nth(self, number: int) -> ScriptedCall:
        """The n-th call, from 0, waiting until it is made."""
        while len(self.calls) <= number:
            self._arrived.clear()
            await self._arrived.wait()
        return self.calls[number]
