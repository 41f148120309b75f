"""The event log in Redis 6.2 or newer. What it promises is in `log.py`; each atomic step is a script in `lua/`.

A run has four keys that share a hash tag: `hg:{ID}:events`, a stream; `hg:{ID}:meta`, a hash; `hg:{ID}:request`, a string;
`hg:{ID}:kept`, a list that leads to all events but the deltas, so that archiving a run does not have to read every token of it.
Its batches are published on `hg:{ID}:live`. Appends have a connection of their own, so that a reader of ten thousand events
delays nobody's token.

What is appended together is stored together, up to a few kilobytes as one entry of the stream (see `append.lua`), which costs
Redis hardly more than a single event does. Positions are those of the events all the same, and reading may begin at any of them.

It does not retry: a call whose answer did not come raises LogUnavailable, and appends can be repeated by their `producer_seq`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate, repeat
from math import ceil
from types import TracebackType
from typing import Any, Self

import msgspec

from orchestrator.errors import HeadgateError
from orchestrator.events import DELTA, Entry, Event
from orchestrator.runs import MOVES, Run, RunRequest, RunState
from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address
from orchestrator.streamlog.log import (
    Appended,
    AppendForgotten,
    AppendSkipped,
    Batch,
    Claim,
    Fenced,
    Listener,
    LogClosed,
    LogExists,
    LogMissing,
    LogUnavailable,
    Reservation,
    Spent,
    Tail,
)
from orchestrator.streamlog.notices import Notices, decode_batch
from orchestrator.streamlog.registry import RUN_FIELDS, Registry, parse_run
from orchestrator.streamlog.scripts import load
from orchestrator.streamlog.wire import Command, Word

BATCH_BYTES = 16 * 1024
"""How many bytes of events are stored as one batch at most; a larger event is a batch of its own."""

PAGE = 128
"""Batches per read command, two megabytes at most, so that no read holds Redis up for long."""

_FIRST_PAGE = 8
"""Batches in the first read command, as it is not known how many events are in one."""

_GROWTH = 16
"""How many times as many batches a read command may ask for as the one before, for they may be much fuller."""

_MOST_REFRESH_MS = 60_000
_REFUSED: dict[bytes, type[HeadgateError]] = {
    refusal.code.encode(): refusal for refusal in (Fenced, LogClosed, LogMissing, LogExists, AppendSkipped, AppendForgotten)
}
_NEXT_DELTA = b"\n" + DELTA
_FOLLOWS = {state: " ".join(was for was in MOVES if state in MOVES[was]) for state in RunState}

_encode = msgspec.json.Encoder().encode
_decode_request = msgspec.json.Decoder(RunRequest).decode


class RedisLog:
    """`async with` it. `admission_s` bounds the opening of a run, which somebody is waiting for; `origin` names the process."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "hg",
        retention_ms: int = 86_400_000,
        max_events: int = 1_000_000,
        call_timeout_s: float = 2.0,
        wait_s: float = 0.5,
        admission_s: float = 0.85,
        origin: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        address = Address(url)
        self.listener: Listener | None = None
        self.watched: Callable[[str], None] | None = None
        self._prefix = prefix
        self._retention_ms = retention_ms
        self._refresh_ms = min(_MOST_REFRESH_MS, retention_ms // 8)
        self._max_events = max_events
        self._admission_s = admission_s
        self._origin = (origin or secrets.token_hex(6)).encode()
        self._own = self._origin + b" "
        self._writes = Connection(address, call_timeout_s=call_timeout_s, wait_s=wait_s)
        self._reads = Connection(address, call_timeout_s=call_timeout_s, wait_s=wait_s)
        self._notices = Notices(address, self._notice, self._flowing, call_timeout_s=call_timeout_s)
        self._registry = Registry(self._writes, prefix, retention_ms)
        self._control = f"{prefix}:control"
        self._control_listeners: list[Callable[[str, str], None]] = []
        self._open, self._append, self._claim = load("open"), load("append"), load("claim")
        self._spend = load("spend")
        self._find, self._tail, self._held, self._kept = load("find"), load("tail"), load("held"), load("kept")

    async def __aenter__(self) -> Self:
        self._notices.watch(self._control)
        for part in (self._writes, self._reads, self._notices):
            part.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for part in (self._notices, self._reads, self._writes):
            await part.close()

    @property
    def connection(self) -> Connection:
        """The one that appends: what is sent on it arrives in this order."""
        return self._writes

    async def ping(self) -> None:
        await self._writes.call((b"PING",))

    # -- writing ---------------------------------------------------------------------------------------------------------

    async def open(
        self, run: Run, request: RunRequest, bodies: Sequence[bytes], *, events: Sequence[Event] | None = None
    ) -> Appended:
        keys, channel = self._keys(run.id)
        over = run.state.ended
        held = "" if run.hold is None else " ".join(run.hold.places)
        about: Command = (_encode(run), run.state, _encode(request), int(over), held)
        args: Command = (self._origin, channel, self._retention_ms, *about, *_batches(bodies))
        parse = partial(self._appended, run.id, bodies, events, over)
        try:
            async with asyncio.timeout(self._admission_s):
                await self._writes.ready()
                self._writes.post(*self._registry.entering(run))
                appended: Appended = await self._writes.run(self._open, keys, args, parse)
        except TimeoutError:
            raise LogUnavailable(retry_after_s=1.0) from None
        return appended

    async def reserve(
        self, tenant: str, name: str, wanted: Reservation, *, instead_of: str = "", keep_ms: int | None = None
    ) -> Reservation:
        try:
            async with asyncio.timeout(self._admission_s):
                return await self._registry.reserve(tenant, name, wanted, instead_of, keep_ms)
        except TimeoutError:
            raise LogUnavailable(retry_after_s=1.0) from None

    async def remember(self, tenant: str, name: str) -> None:
        await self._registry.remember(tenant, name)

    async def append(
        self,
        run_id: str,
        writer: str,
        attempt: int,
        producer_seq: int,
        bodies: Sequence[bytes],
        *,
        events: Sequence[Event] | None = None,
        state: RunState | None = None,
        ends: bool = False,
        lease_ms: int = 0,
    ) -> Appended:
        keys, channel = self._keys(run_id)
        if state is None or (state.ended and not ends):
            state_is, follows = "", ""
        else:
            state_is, follows = state, _FOLLOWS[state]
        args: Command = (
            self._origin,
            channel,
            self._retention_ms,
            self._refresh_ms,
            self._max_events,
            writer,
            attempt,
            producer_seq,
            state_is,
            follows,
            int(ends),
            lease_ms,
            *_batches(bodies),
        )
        appended: Appended = await self._writes.run(
            self._append, keys, args, partial(self._appended, run_id, bodies, events, ends)
        )
        return appended

    def _appended(self, run_id: str, bodies: Sequence[bytes], events: Sequence[Event] | None, ends: bool, reply: Any) -> Appended:
        """What an append's reply means. Runs as the reply arrives, so batches reach the listener in the log's order.

        The reply to a repetition may be the first one to arrive here, so it is handed on too; listeners know what they know.
        """
        if isinstance(reply, bytes):
            raise _REFUSED[reply]
        first_seq, count, ms, prev_ms, repeated, closed = reply
        if ends and closed:
            self._writes.post(*self._registry.settling(run_id))
        if self.listener is not None and count == len(bodies) and count:
            entries = list(map(Entry, range(first_seq, first_seq + count), repeat(ms), bodies, events or repeat(None)))
            self.listener(Batch(run_id, first_seq - 1, prev_ms, entries))
        return Appended(first_seq, count, ms, repeated == 1)

    async def claim(self, run_id: str, writer: str, attempt: int, lease_ms: int) -> Claim:
        reply = await self._writes.run(self._claim, [self._registry.meta(run_id)], (writer, attempt, lease_ms))
        if isinstance(reply, bytes):
            raise _REFUSED[reply]
        return Claim(*reply)

    async def spend(self, run_id: str, used: int, wanted: int, most: int) -> Spent:
        reply = await self._writes.run(self._spend, [self._registry.meta(run_id)], (used, wanted, most))
        if isinstance(reply, bytes):
            raise _REFUSED[reply]
        return Spent(*reply)

    # -- reading ---------------------------------------------------------------------------------------------------------

    async def read(self, run_id: str, after_seq: int, limit: int, *, after_ms: int | None = None) -> list[Entry]:
        entries: list[Entry] = []
        size = _FIRST_PAGE
        while size and (left := limit - len(entries)) > 0:
            page, batches = await self._page(run_id, after_seq, after_ms, min(left, size))
            if not page or (entries and page[0].seq != after_seq + 1):
                break  # nothing there, or the log was replaced while it was being read
            after_seq, after_ms = page[-1].seq, page[-1].ms
            entries += page[:left]
            size = min(PAGE, batches * _GROWTH, ceil((left - len(page)) / len(page) * batches))
        return entries

    async def kept(self, run_id: str) -> list[Entry]:
        keys, _ = self._keys(run_id)
        entries: list[Entry] = []
        last, going = b"", True
        while going:
            last, *batches = await self._reads.run(self._kept, (keys[0], keys[3]), (last, PAGE))
            entries += [entry for entry in _entries(batches) if not entry.is_delta]
            going = last != b""
        return entries

    async def find(self, run_id: str, seq: int) -> Entry | None:
        entries = await self._from(run_id, seq) if seq > 0 else []
        return entries[0] if entries and entries[0].seq == seq else None

    async def tail(self, run_id: str) -> Tail | None:
        keys, _ = self._keys(run_id)
        reply = await self._reads.run(self._tail, keys[:2], ())
        return None if reply is None else Tail(reply[0], reply[1], reply[2], reply[3] == 1)

    async def run(self, run_id: str) -> Run | None:
        run: Run | None = await self._reads.call((b"HMGET", self._registry.meta(run_id), *RUN_FIELDS), parse_run)
        return run

    async def request(self, run_id: str) -> RunRequest | None:
        reply = await self._reads.call((b"GET", self._keys(run_id)[0][2]))
        return None if reply is None else _decode_request(reply)

    async def lease_ms(self, run_id: str) -> int:
        return int(await self._reads.run(self._held, [self._registry.meta(run_id)], ()))

    async def _page(self, run_id: str, after_seq: int, after_ms: int | None, size: int) -> tuple[list[Entry], int]:
        """The entries of up to `size` batches, and of how many if there may be more, else 0."""
        if after_seq <= 0:
            start = b"-"
        elif after_ms is None:
            return await self._from(run_id, after_seq + 1), 1
        else:
            start, size = b"%d-%d" % (after_ms, after_seq), size + 1
        batches = await self._reads.call((b"XRANGE", self._events(run_id), start, b"+", b"COUNT", size))
        entries = _entries(batches)
        if after_seq > 0:
            if not entries or entries[0].ms != after_ms or entries[0].seq > after_seq:
                return await self._from(run_id, after_seq), 1  # trimmed, or another stands there now: then it comes first
            entries = entries[after_seq + 1 - entries[0].seq :]
        return entries, size if len(batches) == size else 0

    async def _from(self, run_id: str, seq: int) -> list[Entry]:
        """The entry with this number, or the first later one that is still there, and what follows it in its batch."""
        entries: list[Entry] = await self._reads.run(self._find, [self._events(run_id)], (seq,), _entries)
        return entries[max(0, seq - entries[0].seq) :] if entries else []

    # -- notifications ---------------------------------------------------------------------------------------------------

    def watch(self, run_id: str) -> None:
        self._notices.watch(self._channel(run_id))

    def unwatch(self, run_id: str) -> None:
        self._notices.unwatch(self._channel(run_id))

    async def publish_control(self, run_id: str, op: str) -> None:
        self._act(run_id, op)
        await self._writes.call((b"PUBLISH", self._control, self._own + f"{run_id} {op}".encode()))

    def on_control(self, listener: Callable[[str, str], None]) -> None:
        self._control_listeners.append(listener)

    def _notice(self, channel: str, frame: bytes) -> None:
        if frame.startswith(self._own):
            return  # whoever appended or asked here knows already
        if channel == self._control:
            _, run_id, op = frame.decode().split(" ", 2)
            self._act(run_id, op)
        elif self.listener is not None and (batch := decode_batch(self._run_id(channel), frame)) is not None:
            self.listener(batch)

    def _flowing(self, channel: str) -> None:
        if channel != self._control and self.watched is not None:
            self.watched(self._run_id(channel))

    def _act(self, run_id: str, op: str) -> None:
        for listener in self._control_listeners:
            listener(run_id, op)

    # -- many runs -------------------------------------------------------------------------------------------------------

    async def unarchived_runs(self, tenant: str) -> list[Run]:
        return await self._registry.unarchived_runs(tenant)

    async def approve(self, tenant: str, run_id: str, approval_id: str, wanted: bytes | None) -> None:
        await self._registry.approve(tenant, run_id, approval_id, wanted)

    async def approvals(self, tenant: str) -> list[bytes]:
        return await self._registry.approvals(tenant)

    async def active(self) -> list[str]:
        return await self._registry.active()

    async def unarchived(self, limit: int) -> list[str]:
        return await self._registry.unarchived(limit)

    async def unarchived_count(self) -> int:
        return await self._registry.unarchived_count()

    async def archived(self, run_ids: Sequence[str]) -> None:
        await self._registry.archived(run_ids)

    async def settle(self, run_id: str) -> None:
        await self._registry.settle(run_id)

    async def lease(self, name: str, owner: str, ttl_ms: int) -> bool:
        return await self._registry.lease(name, owner, ttl_ms)

    # -- names -----------------------------------------------------------------------------------------------------------

    def _keys(self, run_id: str) -> tuple[tuple[bytes, bytes, bytes, bytes], str]:
        """A run's four keys, and its channel."""
        stem = f"{self._prefix}:{{{run_id}}}:"
        keys = (f"{stem}events".encode(), f"{stem}meta".encode(), f"{stem}request".encode(), f"{stem}kept".encode())
        return keys, f"{stem}live"

    def _events(self, run_id: str) -> bytes:
        return f"{self._prefix}:{{{run_id}}}:events".encode()

    def _channel(self, run_id: str) -> str:
        return f"{self._prefix}:{{{run_id}}}:live"

    def _run_id(self, channel: str) -> str:
        return channel[len(self._prefix) + 2 : -len("}:live")]


def _batches(bodies: Sequence[bytes]) -> Sequence[Word]:
    """Events as the scripts take them: for each batch how many, 0 if they are deltas only, and the events, one per line."""
    lines = b"\n".join(bodies)
    if len(lines) <= BATCH_BYTES:
        return _batch(len(bodies), lines) if bodies else ()
    words: list[Word] = []
    ends = list(accumulate(len(body) + 1 for body in bodies))
    first = start = 0
    while first < len(bodies):
        after = max(first + 1, bisect_right(ends, start + BATCH_BYTES))
        words += _batch(after - first, lines[start : ends[after - 1] - 1])
        first, start = after, ends[after - 1]
    return words


def _batch(count: int, lines: bytes) -> tuple[int, int, bytes]:
    if lines.count(b"\n") != count - 1:
        raise ValueError("the encoding of an event has to be one line")
    return count, int(not lines.startswith(DELTA) or lines.count(_NEXT_DELTA) != count - 1), lines


def _entries(batches: Sequence[tuple[bytes, tuple[bytes, bytes]]]) -> list[Entry]:
    """Entries from a stream's, which are batches: `{ms}-{seq}` of the last event, the number of events, one event per line."""
    entries: list[Entry] = []
    for stream_id, (count, lines) in batches:
        at, _, last = stream_id.partition(b"-")
        seq, ms = int(last), int(at)
        if count == b"1":
            entries.append(Entry(seq, ms, lines))
        else:
            entries += [Entry(n, ms, body) for n, body in enumerate(lines.split(b"\n"), seq - int(count) + 1)]
    return entries
