"""One socket to Redis: commands leave in one write per loop iteration, replies are matched to them in order.

What a reply means is worked out as it arrives, by the `parse` given with the command, also when whoever asked has been
cancelled meanwhile: what Redis did, happened. A socket whose oldest command waits longer than the bound is dropped, and all that
is pending on it fails with LogUnavailable. It is not known whether those commands took effect.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from orchestrator.streamlog.log import LogUnavailable

Word = bytes | str | int
Command = Sequence[Word]
Parse = Callable[[Any], Any]

_log = logging.getLogger(__name__)

_NOTHING = object()
_AWAY = re.compile(r"(?:^|-)(?:LOADING|OOM|READONLY|MISCONF|BUSY|CLUSTERDOWN|MASTERDOWN|NOREPLICAS|TRYAGAIN|NOAUTH)\b")


class NoScript(Exception):
    """Redis does not remember the script."""


def reply_error(message: str) -> Exception:
    """Redis's error as ours: the states that pass by themselves or by an operator's hand are unavailability."""
    if message.startswith("NOSCRIPT"):
        return NoScript(message)
    if _AWAY.search(message):
        return LogUnavailable(f"Redis cannot serve this now: {message}", retry_after_s=1.0)
    return hiredis.ReplyError(message)


class Wire(asyncio.Protocol):
    """`answering` is called after replies came in, `lost` once when the socket is gone."""

    def __init__(self, call_timeout_s: float, answering: Callable[[], None], lost: Callable[[Wire], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call_timeout_s = call_timeout_s
        self._answering = answering
        self._lost = lost
        self._reader = hiredis.Reader(replyError=reply_error, notEnoughData=_NOTHING)
        self._pending: deque[tuple[asyncio.Future[Any] | None, Parse | None, float]] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def pending(self) -> int:
        return len(self._pending)

    def waited_s(self) -> float:
        """How long the oldest command has been waiting for its reply."""
        return self._loop.time() - self._pending[0][2] if self._pending else 0.0

    def send(self, command: Command, parse: Parse | None = None) -> asyncio.Future[Any]:
        """The future has what `parse` made of the reply, or the reply itself."""
        future = self._loop.create_future()
        self._queue(command, future, parse)
        return future

    def post(self, command: Command) -> None:
        """Send a command whose reply nobody waits for."""
        self._queue(command, None, None)

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _queue(self, command: Command, future: asyncio.Future[Any] | None, parse: Parse | None) -> None:
        if self._transport is None:
            raise LogUnavailable(retry_after_s=1.0)
        self.write(command)
        self._pending.append((future, parse, self._loop.time()))
        if self._timer is None:
            self._timer = self._loop.call_later(self._call_timeout_s, self._check)

    def write(self, command: Command) -> None:
        """Send a command and expect nothing."""
        packed = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub says one word
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(packed)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(self._out[0] if len(self._out) == 1 else b"".join(self._out))
        self._out.clear()

    def _check(self) -> None:
        self._timer = None
        if not self._pending:
            return
        left = self._call_timeout_s - self.waited_s()
        if left <= 0:
            self.drop()
        else:
            self._timer = self._loop.call_later(left, self._check)

    def take(self, reply: Any) -> None:
        """One reply has arrived."""
        if not self._pending:
            raise hiredis.ProtocolError("an answer to nothing")
        future, parse, _ = self._pending.popleft()
        if isinstance(reply, Exception):
            _fail(future, reply)
            return
        if parse is not None:
            try:
                reply = parse(reply)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever sent the command, not to the socket
                _fail(future, error)
                return
        if future is not None and not future.done():
            future.set_result(reply)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not _NOTHING:
                self.take(reply)
        except hiredis.ProtocolError as error:
            _log.error("Redis sent what is no reply: %s", error)
            self.drop()
        self._answering()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, deque()
        for future, _, _ in pending:
            _fail(future, LogUnavailable(retry_after_s=1.0))
        self._lost(self)


def _fail(future: asyncio.Future[Any] | None, error: Exception) -> None:
    if future is not None and not future.done():
        future.set_exception(error)
