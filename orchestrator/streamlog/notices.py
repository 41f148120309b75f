"""Notifications from Redis: the batches that other processes append to watched runs, and the control channel.

One subscribed connection per process. Losing a notification is allowed: a reader sees the hole by its number, and `watched`
tells, after every subscription that took effect, that the log is to be compared once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from orchestrator.events import Entry
from orchestrator.streamlog.link import Address, Link
from orchestrator.streamlog.log import Batch
from orchestrator.streamlog.wire import Wire

_log = logging.getLogger(__name__)

_QUIET_S = 5.0
"""After this much silence Redis is asked for a sign of life; after twice as much the connection is dropped."""


def decode_batch(run_id: str, frame: bytes) -> Batch | None:
    """A batch as `append.lua` publishes it: `origin prev_seq count ms prev_ms`, then one body per line. None if it is not one."""
    head, *bodies = frame.split(b"\n")
    try:
        prev_seq, count, ms, prev_ms = map(int, head.split(b" ")[1:])
    except ValueError:
        return None
    if not bodies or count != len(bodies):
        return None
    return Batch(run_id, prev_seq, prev_ms, [Entry(seq, ms, body) for seq, body in enumerate(bodies, prev_seq + 1)])


class NoticeWire(Wire):
    """A wire whose replies, once it is `subscribed`, are notifications."""

    subscribed: Callable[[Any], None] | None = None

    def take(self, reply: Any) -> None:
        if self.subscribed is None:
            super().take(reply)
        elif isinstance(reply, Exception):
            _log.error("Redis refused a subscription: %s", reply)
            self.drop()
        else:
            self.subscribed(reply)


class Notices:
    """`message` is given a watched channel's name and payload; `watched` its name when messages have begun to flow."""

    def __init__(
        self,
        address: Address,
        message: Callable[[str, bytes], None],
        watched: Callable[[str], None],
        *,
        call_timeout_s: float = 2.0,
        quiet_s: float = _QUIET_S,
    ) -> None:
        self._message = message
        self._watched = watched
        self._call_timeout_s = call_timeout_s
        self._quiet_s = quiet_s
        self._wanted: dict[bytes, str] = {}
        self._asked: set[bytes] = set()
        self._flowing: set[bytes] = set()
        self._changed: set[bytes] = set()
        self._wire: NoticeWire | None = None
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None
        self._link = Link(address, self._make, self._up, self._down, connect_timeout_s=call_timeout_s / 2)

    def start(self) -> None:
        self._link.start()

    async def close(self) -> None:
        await self._link.close()

    def watch(self, channel: str) -> None:
        name = channel.encode()
        self._wanted[name] = channel
        self._change(name)

    def unwatch(self, channel: str) -> None:
        name = channel.encode()
        if self._wanted.pop(name, None) is not None:
            self._change(name)

    def _change(self, name: bytes) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._changed.add(name)

    def _flush(self) -> None:
        """Ask for what is wanted and not yet asked for, and the other way round."""
        changed, self._changed = self._changed, set()
        if self._wire is None:
            return
        join = [name for name in changed if name in self._wanted and name not in self._asked]
        leave = [name for name in changed if name in self._asked and name not in self._wanted]
        self._asked.update(join)
        self._asked.difference_update(leave)
        self._flowing.difference_update(leave)
        if join:
            self._wire.write((b"SUBSCRIBE", *join))
        if leave:
            self._wire.write((b"UNSUBSCRIBE", *leave))
        for name in changed & self._flowing:
            self._watched(self._wanted[name])

    def _take(self, notice: Any) -> None:
        self._heard = True
        if not isinstance(notice, list) or len(notice) != 3:
            return  # the answer to our PING
        kind, name, payload = notice
        channel = self._wanted.get(name)
        if channel is None:
            return
        if kind == b"message":
            self._message(channel, payload)
        elif kind == b"subscribe" and name in self._asked:
            self._flowing.add(name)
            self._watched(channel)

    def _make(self, lost: Callable[[Wire], None]) -> NoticeWire:
        return NoticeWire(self._call_timeout_s, lambda: None, lost)

    def _up(self, wire: NoticeWire) -> None:
        wire.subscribed = self._take
        self._wire = wire
        self._changed.update(self._wanted)
        self._flush()
        self._heard = True
        self._listen(wire)

    def _listen(self, wire: NoticeWire) -> None:
        """Notice a connection that died without a word."""
        if not self._heard:
            wire.drop()
            return
        self._heard = False
        wire.write((b"PING",))
        self._timer = asyncio.get_running_loop().call_later(self._quiet_s, self._listen, wire)

    def _down(self) -> None:
        self._wire = None
        self._asked.clear()
        self._flowing.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
