"""One run's log in memory: the rules of `log.py` as plain code. `lua/append.lua` and `lua/claim.lua` are its twins. No I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from orchestrator.events import AGENT_STARTS, Entry
from orchestrator.runs import MOVES, Run, RunRequest, RunState
from orchestrator.streamlog.log import (
    ACK_WINDOW,
    Appended,
    AppendForgotten,
    AppendSkipped,
    Claim,
    Fenced,
    LogClosed,
    Spent,
    Tail,
)


class Append(msgspec.Struct, frozen=True):
    """What `Log.append` was asked to do."""

    writer: str
    attempt: int
    producer_seq: int
    bodies: Sequence[bytes]
    state: RunState | None
    ends: bool
    lease_ms: int


class Writer:
    """What a log knows of one of its writers."""

    def __init__(self) -> None:
        self.attempt = 0
        self.appends = 0
        self.acks: dict[int, tuple[Appended, int]] = {}
        self.holder = 0
        self.until_ms = 0

    def take_over(self, attempt: int) -> None:
        self.attempt, self.appends = attempt, 0
        self.acks.clear()
        self.holder = self.until_ms = 0


class Record:
    def __init__(self, run: Run, request: RunRequest, now_ms: int) -> None:
        self.run = run
        self.request = request
        self.seq = 0
        self.ms = now_ms
        self.touched_ms = now_ms
        self.closed = False
        self._held = self._used = 0
        self._entries: list[Entry] = []
        self._writers: dict[str, Writer] = {}

    def append(self, append: Append, now_ms: int, max_events: int) -> tuple[Appended, int]:
        """Where the events stand, and the time of the event before them."""
        writer = self._writers.get(append.writer) or Writer()
        repeats = append.attempt == writer.attempt and 0 < append.producer_seq <= writer.appends
        if repeats:
            if append.producer_seq not in writer.acks:
                raise AppendForgotten
            appended, prev_ms = writer.acks[append.producer_seq]
            return msgspec.structs.replace(appended, repeated=True), prev_ms
        self._check(append, writer)
        if append.attempt > writer.attempt:
            writer.take_over(append.attempt)
        self._writers[append.writer] = writer
        prev_seq, prev_ms = self.seq, self.ms
        self.add(append.bodies, now_ms, max_events)
        appended = Appended(prev_seq + 1, len(append.bodies), self.ms)
        if append.producer_seq > 0:
            writer.appends = append.producer_seq
            writer.acks[append.producer_seq] = appended, prev_ms
            writer.acks.pop(append.producer_seq - ACK_WINDOW, None)
        if append.lease_ms > 0:
            writer.holder, writer.until_ms = append.attempt, now_ms + append.lease_ms
        self._move(append.state, append.ends, append.bodies)
        return appended, prev_ms

    def add(self, bodies: Sequence[bytes], now_ms: int, max_events: int) -> None:
        self.ms = max(now_ms, self.ms)
        self.touched_ms = now_ms
        self._entries += [Entry(seq, self.ms, body) for seq, body in enumerate(bodies, self.seq + 1)]
        self.seq += len(bodies)
        del self._entries[: max(0, len(self._entries) - max_events)]

    def close(self) -> None:
        """The run was over when it was opened."""
        self.closed = True
        self.run = msgspec.structs.replace(self.run, started_ms=self.ms, ended_ms=self.ms)

    def claim(self, name: str, attempt: int, lease_ms: int, now_ms: int) -> Claim:
        if self.closed:
            raise LogClosed
        writer = self._writers.get(name) or Writer()
        if attempt < writer.attempt:
            raise Fenced
        if lease_ms == 0:
            if writer.holder == attempt:
                writer.holder = writer.until_ms = 0
            return Claim(0, self.seq)
        if writer.holder < attempt and writer.until_ms > now_ms:
            return Claim(writer.until_ms - now_ms, self.seq)
        if attempt > writer.attempt:
            writer.take_over(attempt)
        writer.holder, writer.until_ms = attempt, now_ms + lease_ms
        self._writers[name] = writer
        return Claim(0, self.seq)

    def spend(self, used: int, wanted: int, most: int) -> Spent:
        granted = min(wanted, max(most - self._held, 0))
        self._held += granted
        self._used += used
        return Spent(granted, self._used, self._held)

    def held_ms(self, now_ms: int) -> int:
        if self.closed:
            return 0
        return max((writer.until_ms - now_ms for writer in self._writers.values() if writer.until_ms > now_ms), default=0)

    def after(self, seq: int, ms: int | None, limit: int) -> list[Entry]:
        start = bisect_right(self._entries, seq, key=lambda entry: entry.seq)
        if ms is not None and start and self._entries[start - 1].seq == seq and self._entries[start - 1].ms != ms:
            start -= 1  # another event stands there: that it comes first tells the reader so
        return self._entries[start : start + limit]

    def kept(self) -> list[Entry]:
        return [entry for entry in self._entries if not entry.is_delta]

    def tail(self) -> Tail:
        first_seq = self._entries[0].seq if self._entries else self.seq + 1
        return Tail(self.seq, self.ms, first_seq, self.closed)

    def _check(self, append: Append, writer: Writer) -> None:
        if self.closed:
            raise LogClosed
        if append.attempt < writer.attempt:
            raise Fenced
        held = writer.appends if append.attempt == writer.attempt else 0
        if append.producer_seq > held + 1:
            raise AppendSkipped

    def _move(self, state: RunState | None, ends: bool, bodies: Sequence[bytes]) -> None:
        run = self.run
        if state is not None and state in MOVES[run.state] and (ends or not state.ended):
            # A fast agent starts and ends in one append.
            starts = state is RunState.RUNNING or (ends and any(body.startswith(AGENT_STARTS) for body in bodies))
            started_ms = self.ms if starts and run.started_ms is None else run.started_ms
            run = msgspec.structs.replace(run, state=state, started_ms=started_ms)
        if ends:
            self.closed = True
            run = msgspec.structs.replace(run, ended_ms=self.ms)
        self.run = run
