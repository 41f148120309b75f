"""Commands to Redis over one multiplexed connection, with a bound on every wait.

Commands issued in the same loop iteration share a socket write. While Redis is away, or its oldest answer is late, new commands
wait for `wait_s` and then fail with LogUnavailable; nothing is sent twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.streamlog.link import Address, Link
from orchestrator.streamlog.log import LogUnavailable
from orchestrator.streamlog.scripts import Script
from orchestrator.streamlog.wire import Command, NoScript, Parse, Wire


class Connection:
    """`call_timeout_s` bounds an answer, and `wait_s` how long a call waits to be sent.

    Nothing new is sent to a Redis that owes an answer for longer than a quarter of the bound.
    """

    def __init__(
        self,
        address: Address,
        *,
        call_timeout_s: float = 2.0,
        wait_s: float = 0.5,
        max_pending: int = 10_000,
    ) -> None:
        self._call_timeout_s = call_timeout_s
        self._wait_s = wait_s
        self._late_s = call_timeout_s / 4
        self._max_pending = max_pending
        self._wire: Wire | None = None
        self._turn: asyncio.Event | None = None
        self._link = Link(address, self._make, self._up, self._down, connect_timeout_s=call_timeout_s / 2)

    def start(self) -> None:
        self._link.start()

    async def close(self) -> None:
        await self._link.close()

    async def call(self, command: Command, parse: Parse | None = None) -> Any:
        """What `parse` makes of the reply, or the reply. Raises LogUnavailable, or what Redis answered."""
        return await (await self.ready()).send(command, parse)

    async def call_all(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to commands that are sent together, in this order."""
        wire = await self.ready()
        return await asyncio.gather(*(wire.send(command) for command in commands))

    async def run(self, script: Script, keys: Sequence[bytes], args: Command, parse: Parse | None = None) -> Any:
        """Run a script, by its digest if Redis remembers it."""
        wire = await self.ready()
        try:
            return await wire.send((b"EVALSHA", script.sha, len(keys), *keys, *args), parse)
        except NoScript:
            return await self.call((b"EVAL", script.text, len(keys), *keys, *args), parse)

    def post(self, *commands: Command) -> None:
        """Send commands whose loss is mended elsewhere."""
        if self._wire is not None:
            for command in commands:
                self._wire.post(command)

    async def ready(self) -> Wire:
        """The wire, as soon as Redis answers on it."""
        wire = self._wire
        if wire is None or wire.waited_s() > self._late_s:
            wire = await self._wait()
        if wire.pending >= self._max_pending:
            raise LogUnavailable("Too many commands wait for Redis.", retry_after_s=1.0)
        return wire

    async def _wait(self) -> Wire:
        try:
            async with asyncio.timeout(self._wait_s):
                while True:
                    turn = self._turn = self._turn or asyncio.Event()
                    await turn.wait()
                    if self._wire is not None and self._wire.waited_s() <= self._late_s:
                        return self._wire
        except TimeoutError:
            raise LogUnavailable(retry_after_s=1.0) from None

    def _make(self, lost: Callable[[Wire], None]) -> Wire:
        return Wire(self._call_timeout_s, self._wake, lost)

    def _up(self, wire: Wire) -> None:
        self._wire = wire
        self._wake()

    def _down(self) -> None:
        self._wire = None

    def _wake(self) -> None:
        if self._turn is not None:
            self._turn.set()
            self._turn = None
