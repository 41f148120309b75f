"""Deterministic schedules over the memory log: virtual time, seeded interleavings, lost replies and lost notifications.

One seed is one story: two processes share a store; a writer appends, its replies are sometimes lost; notifications arrive late or
never; readers come at any time, at any position, read at their own pace, leave and come back with the position they hold.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any

from orchestrator.events import Entry, Event, EventType, encode
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Log, LogUnavailable, Position
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.streamlog.writer import EventWriter

RUN_ID = "task-" + "0" * 32
_FOREVER_S = 3600.0
"""Virtual seconds after which a story that goes on is a hang."""

AT = "2026-01-01T00:00:00.000Z"


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when nothing else can happen."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        super().__init__(_Patient(self))

    def time(self) -> float:
        return self._virtual_s

    def pass_time(self, seconds: float) -> None:
        self._virtual_s += seconds


class _Patient(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing can ever happen again: a hang")
        self._loop.pass_time(timeout)
        return super().select(0)


class LoopClock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def time(self) -> float:
        return 1_700_000_000.0 + self._loop.time()


class NoHistory:
    """An archive in which nothing is."""

    async def entries(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        return []

    async def find(self, run_id: str, seq: int) -> Entry | None:
        return None


class Story:
    """One seed. `pace` is what becomes of a second, for stories in real time."""

    pace = 1.0

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.chance = random.Random(seed)
        self.clock = LoopClock(loop)
        self.store = MemoryStore(self.clock.time)
        self.store.checkpoint = self._checkpoint
        self.calm = False
        self.memory = [MemoryLog(self.store, manual=True) for _ in range(2)]
        self.logs: Sequence[Log] = self.memory
        ring = self.chance.choice([1, 200, 2000, 1 << 20])
        self.fanouts = [Fanout(log, NoHistory(), ring_bytes=ring) for log in self.logs]
        self.events = self.chance.randrange(0, 40)
        self.failures: list[str] = []

    async def tell(self) -> None:
        delivering = asyncio.create_task(self._deliver())
        try:
            await self._run()
        finally:
            delivering.cancel()
            await asyncio.wait([delivering])
            await self._close()

    async def _close(self) -> None:
        for fanout in self.fanouts:
            await fanout.close()

    async def _run(self) -> None:
        run = Run(RUN_ID, "t", "m", "agent", 1)
        self.fanouts[0].hold(RUN_ID, "t")
        self.calm = True
        started = Event(EventType.WORKFLOW_STARTED, AT)
        await self.logs[0].open(run, RunRequest("m", "m", {}, {}), [encode(started)], events=[started])
        self.calm = False
        async with asyncio.timeout(_FOREVER_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write(self.chance.randrange(2)))
            for _ in range(self.chance.randrange(1, 4)):
                tasks.create_task(self._read(self.chance.randrange(2)))

    async def _write(self, process: int) -> None:
        with self.fanouts[process].writing(RUN_ID):
            writer = EventWriter(
                self.logs[process],
                RUN_ID,
                "agent",
                1,
                lease_ms=5000,
                metrics=NoMetrics(),
                clock=self.clock,
                on_refused=lambda error: self.failures.append(f"refused: {error!r}"),
                max_bytes=self.chance.choice([1, 300, 1 << 20]),
            )
            for number in range(self.events):
                writer.emit(Event(EventType.LLM_PARTIAL, AT, "agent", f"{number} "))
                if writer.full:
                    await writer.room()
                if self.chance.random() < 0.5:
                    await self._pause(0, 0, 0.001, 0.03, 1.0)
            ending = [Event(EventType.WORKFLOW_COMPLETED, AT), Event(EventType.STREAM_END, AT)]
            await writer.end(ending, RunState.COMPLETED)

    async def _read(self, process: int) -> None:
        """Read to the end, leaving and coming back to either process with the position that was reached."""
        await self._pause(0, 0, 0.0005, 0.02, 2.0, 30.0)
        seen: list[Entry] = []
        while True:
            position = Position(seen[-1].seq, seen[-1].ms if self.chance.random() < 0.7 else None) if seen else Position(0)
            try:
                async with self.fanouts[process].subscribe(RUN_ID, position) as cursor:
                    while not cursor.ended:
                        for item in await cursor.next(self.pace * self.chance.choice([0, 0.01, 10.0])):
                            if not isinstance(item, Entry):
                                self.failures.append(f"gap {item} at {position}")
                                return
                            seen.append(item)
                        if self.chance.random() < 0.1:
                            break
                    if cursor.ended:
                        break
            except LogUnavailable:
                await asyncio.sleep(0.01)
            process = self.chance.randrange(2)
        self._judge(seen)

    async def _pause(self, *seconds: float) -> None:
        """For one of these times."""
        await asyncio.sleep(self.pace * self.chance.choice(seconds))

    def _judge(self, seen: list[Entry]) -> None:
        if [entry.seq for entry in seen] != list(range(1, self.events + 4)):
            self.failures.append(f"positions {[entry.seq for entry in seen]} of {self.events + 3}")
        text = "".join(entry.event.message or "" for entry in seen)
        if text != "".join(f"{number} " for number in range(self.events)):
            self.failures.append(f"text {text!r}")

    async def _deliver(self) -> None:
        """Notifications arrive when chance wants them to, if at all."""
        while True:
            waiting = [log for log in self.memory if log.notices]
            for log in waiting:
                if self.chance.random() < 0.2:
                    log.lose(1)
                else:
                    log.deliver(self.chance.randrange(1, 4))
            await self._pause(*([0, 0, 0.001, 0.05] if waiting else [0.001, 0.5]))

    async def _checkpoint(self, operation: str, point: str) -> None:
        if self.calm:
            return
        for _ in range(self.chance.choice([0, 0, 1, 3])):
            await asyncio.sleep(0)
        if self.chance.random() < 0.05:
            raise LogUnavailable


def told(seeds: range, story: type[Story] = Story) -> list[tuple[int, list[str]]]:
    """Tell these stories; the ones that went wrong, with what was wrong."""
    loop = VirtualLoop()
    wrong = []
    try:
        for seed in seeds:
            one = story(seed, loop)
            _complete(loop, one.tell(), seed)
            if one.failures:
                wrong.append((seed, one.failures))
    finally:
        loop.close()
    return wrong


def _complete(loop: VirtualLoop, work: Coroutine[Any, Any, None], seed: int) -> None:
    try:
        loop.run_until_complete(work)
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
