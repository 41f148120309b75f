"""The event log in Redis 6.2 or newer. What it promises is in `log.py`; each atomic step is a script in `lua/`.

A run has four keys that share a hash tag: `hg:{ID}:events`, a stream; `hg:{ID}:meta`, a hash; `hg:{ID}:request`, a string;
`hg:{ID}:kept`, a list of the ids of all events but deltas, so that archiving a run does not have to read every token of it. Its
batches are published on `hg:{ID}:live`. Appends have a connection of their own, so that a reader of ten thousand events delays
nobody's token.

It does not retry: a call whose answer did not come raises LogUnavailable, and appends can be repeated by their `producer_seq`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from orchestrator.errors import HeadgateError
from orchestrator.events import Entry, Event
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
    Tail,
)
from orchestrator.streamlog.notices import Notices, decode_batch
from orchestrator.streamlog.registry import RUN_FIELDS, Registry, parse_run
from orchestrator.streamlog.scripts import load
from orchestrator.streamlog.wire import Command

PAGE = 512
"""Entries per read command, so that no read holds Redis up for long."""

_MOST_REFRESH_MS = 60_000
_REFUSED: dict[bytes, type[HeadgateError]] = {
    refusal.code.encode(): refusal for refusal in (Fenced, LogClosed, LogMissing, LogExists, AppendSkipped, AppendForgotten)
}
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
        admission_s: float = 0.9,
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

    async def ping(self) -> None:
        await self._writes.call((b"PING",))

    # -- writing ---------------------------------------------------------------------------------------------------------

    async def open(
        self, run: Run, request: RunRequest, bodies: Sequence[bytes], *, events: Sequence[Event] | None = None
    ) -> Appended:
        keys, channel = self._keys(run.id)
        args: Command = (self._origin, channel, self._retention_ms, _encode(run), run.state, _encode(request), *bodies)
        parse = partial(self._appended, run.id, bodies, events, False)
        try:
            async with asyncio.timeout(self._admission_s):
                await self._writes.ready()
                self._writes.post(*self._registry.entering(run))
                appended: Appended = await self._writes.run(self._open, keys, args, parse)
        except TimeoutError:
            raise LogUnavailable(retry_after_s=1.0) from None
        return appended

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
            *bodies,
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
            seqs = range(first_seq, first_seq + count)
            if events is None:
                entries = [Entry(seq, ms, body) for seq, body in zip(seqs, bodies, strict=True)]
            else:
                entries = [Entry(seq, ms, body, event) for seq, body, event in zip(seqs, bodies, events, strict=True)]
            self.listener(Batch(run_id, first_seq - 1, prev_ms, entries))
        return Appended(first_seq, count, ms, repeated == 1)

    async def claim(self, run_id: str, writer: str, attempt: int, lease_ms: int) -> Claim:
        reply = await self._writes.run(self._claim, [self._registry.meta(run_id)], (writer, attempt, lease_ms))
        if isinstance(reply, bytes):
            raise _REFUSED[reply]
        return Claim(*reply)

    # -- reading ---------------------------------------------------------------------------------------------------------

    async def read(self, run_id: str, after_seq: int, limit: int, *, after_ms: int | None = None) -> list[Entry]:
        entries: list[Entry] = []
        while len(entries) < limit:
            size = min(PAGE, limit - len(entries))
            page = await self._page(run_id, after_seq, after_ms, size)
            if entries and page and page[0].seq != after_seq + 1:
                break  # the log was replaced while it was being read
            entries += page
            if len(page) < size:
                break
            after_seq, after_ms = page[-1].seq, page[-1].ms
        return entries

    async def kept(self, run_id: str, skip: int, limit: int) -> list[Entry]:
        keys, _ = self._keys(run_id)
        entries: list[Entry] = await self._reads.run(self._kept, (keys[0], keys[3]), (skip, limit), _entries)
        return entries

    async def find(self, run_id: str, seq: int) -> Entry | None:
        entries = await self._from(run_id, seq, 1)
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

    async def _page(self, run_id: str, after_seq: int, after_ms: int | None, size: int) -> list[Entry]:
        if after_seq > 0 and after_ms is None:
            return await self._from(run_id, after_seq + 1, size)
        start, extra = (f"{after_ms}-{after_seq}", 1) if after_seq > 0 else ("-", 0)
        entries: list[Entry] = await self._reads.call(
            (b"XRANGE", self._events(run_id), start, b"+", b"COUNT", size + extra), _entries
        )
        if not extra:
            return entries
        if entries and (entries[0].seq, entries[0].ms) == (after_seq, after_ms):
            return entries[1:]
        return await self._from(run_id, after_seq, size)  # trimmed, or another stands there now: then it comes first

    async def _from(self, run_id: str, seq: int, size: int) -> list[Entry]:
        entries: list[Entry] = await self._reads.run(self._find, [self._events(run_id)], (seq, size), _entries)
        return entries

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


def _entries(reply: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Entry]:
    """Entries from a stream's: `{ms}-{seq}` and the one field's name and value."""
    entries = []
    for stream_id, (_, body) in reply:
        ms, _, seq = stream_id.partition(b"-")
        entries.append(Entry(int(seq), int(ms), body))
    return entries
