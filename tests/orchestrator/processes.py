"""Several processes on one log, one upstream and one Temporal; and what readers see of their runs."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from orchestrator import assembly
from orchestrator.catalog import ModelEntry
from orchestrator.clock import Clock, SystemClock
from orchestrator.events import Event, Gap
from orchestrator.local import LocalEngine
from orchestrator.metrics import NoMetrics
from orchestrator.runs import Principal, RunState
from orchestrator.store.memory import MemoryRuns
from orchestrator.store.questions import Questions
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import Upstream
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import ACME, NOWHERE, TOKENIZER, script

WAIT_S = 20.0

MODELS = {
    "durable": {"plan": {"agent": {"upstream": "demo", "system": "You are CANARY-SYSTEM.", "parameters": {"seed": 7}}}},
    "direct": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
}


class Counted(NoMetrics):
    """What was counted, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def run_started(self) -> None:
        self.calls.append("started")

    def run_ended(self, state: RunState, seconds: float) -> None:
        assert 0.0 <= seconds < 600.0
        self.calls.append(state)

    def first_token(self, seconds: float) -> None:
        self.calls.append("first token")

    def takeover(self) -> None:
        self.calls.append("takeover")

    def cached(self, found: str) -> None:
        self.calls.append(found)

    def cache_failed(self, why: str) -> None:
        self.calls.append(why)


class Shared:
    """What all processes share: the log's store, the archive, the upstream with its witness, and Temporal's task queue."""

    def __init__(self, temporal: TemporalAddress = NOWHERE, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.store = MemoryStore(self.clock.time)
        self.archive = MemoryRuns()
        self.upstream = ScriptedUpstream("demo")
        self.upstreams: dict[str, Upstream] = {"demo": self.upstream}
        self.temporal = temporal
        self.task_queue = f"test-{secrets.token_hex(8)}"
        self.questions: Questions | None = None
        self._owners = itertools.count(1)

    @asynccontextmanager
    async def process(self, models: Mapping[str, Any] = MODELS, **settings: Any) -> AsyncIterator[Process]:
        """A process with all its parts. `settings` are of `assembly.Configuration`."""
        metrics, log = Counted(), MemoryLog(self.store)
        config = assembly.Configuration(
            data_dir=Path("unused"),
            redis=None,
            temporal=None,
            postgres=None,
            upstreams={"demo": ScriptedConfig(kind="scripted")},
            models={name: ModelEntry.model_validate(entry) for name, entry in models.items()},
            **{"task_queue": self.task_queue, "janitor_s": 60.0, "max_agents": 50, "drain_s": 0.0, **settings},
        )
        parts = assembly.Parts(
            log=log,
            store=self.archive,
            upstreams=self.upstreams,
            temporal=self.temporal,
            metrics=metrics,
            clock=self.clock,
            tokens=TOKENIZER,
            owner=f"process-{next(self._owners)}",
            temporal_wait_s=0.0 if self.temporal is NOWHERE else 10.0,
            questions=self.questions,
        )
        async with assembly.engine(config, parts) as engine:
            yield Process(engine, log, metrics)


class Process(msgspec.Struct, eq=False):
    engine: LocalEngine
    log: MemoryLog
    metrics: Counted

    async def submit(self, text: str, model: str = "durable", principal: Principal = ACME) -> str:
        """The id of a run that plays this script."""
        return (await self.engine.submit(principal, script(text, model))).id

    async def events(self, run_id: str, principal: Principal = ACME) -> list[Event]:
        """All of a run's events, when it has ended."""
        return await self.until(run_id, "STREAM_END", principal=principal)

    async def until(self, run_id: str, event_type: str, count: int = 1, principal: Principal = ACME) -> list[Event]:
        """All events up to the one of this type that makes so many."""
        found: list[Event] = []
        async with asyncio.timeout(WAIT_S), self.engine.subscribe(principal, run_id) as cursor:
            while True:
                for item in await cursor.next(1.0):
                    assert not isinstance(item, Gap), item
                    found.append(item.event)
                    count -= item.event.type == event_type
                    if not count:
                        return found
                assert not cursor.ended, [event.type for event in found]


def kinds(events: list[Event]) -> list[str]:
    """The types in order, runs of deltas as one."""
    return [kind for kind, _ in itertools.groupby(event.type for event in events)]


def payload(event: Event) -> dict[str, Any]:
    assert event.payload is not None
    return event.payload
