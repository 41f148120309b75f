"""A desk over the memory log and the scripted upstream: everything real but the wires."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from orchestrator.agents.desk import Desk
from orchestrator.agents.job import Job
from orchestrator.events import Entry, Event, EventType, encode
from orchestrator.limits.limits import Unlimited
from orchestrator.metrics import NoMetrics
from orchestrator.plans.interpreter import StepResult
from orchestrator.plans.plan import Agent
from orchestrator.runs import Run, RunRequest, new_run_id
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Position
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.tools.registry import Tools
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.engines import TOKENIZER
from tests.orchestrator.streamlog.simulation import NoHistory

WAIT_S = 10.0


class LogClock:
    """The log's own clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_s


class World:
    """One process; `another()` is a second one on the same log."""

    def __init__(self, other: World | None = None, router: Router | None = None) -> None:
        self.clock = other.clock if other else LogClock()
        self.store = other.store if other else MemoryStore(self.clock.time)
        self.log = MemoryLog(self.store)
        self.fanout = Fanout(self.log, NoHistory())
        self.upstream = other.upstream if other else ScriptedUpstream("demo", ScriptedConfig(kind="scripted"))
        self.tools = other.tools if other else Tools({})
        self.desk = Desk(
            tools=self.tools,
            log=self.log,
            fanout=self.fanout,
            router=router or Router({"demo": self.upstream}),
            tokens=TOKENIZER,
            metrics=NoMetrics(),
            clock=self.clock,
            spending=Spending(self.log, Unlimited(), TOKENIZER),
        )

    def another(self) -> World:
        return World(self)

    def lapse(self) -> None:
        """Let every lease lapse."""
        self.clock.ahead_s += 60.0

    async def job(
        self, script: str, *, attempt: int = 1, lease_ms: int = 5000, body: dict[str, Any] | None = None, **step: Any
    ) -> Job:
        """A run whose agent plays this script, opened in the log."""
        run_id = new_run_id(int(time.time() * 1000), secrets.token_bytes)
        run = Run(run_id, "tenant", "model", ("agent",), int(time.time() * 1000), durable=False)
        asked = {"messages": [{"role": "user", "content": f"/script\n{script}"}], **(body or {})}
        request = RunRequest("model", "model", {}, asked)
        started = Event(EventType.WORKFLOW_STARTED, "2026-01-01T00:00:00.000Z")
        self.fanout.hold(run.id, "tenant")
        await self.log.open(run, request, [encode(started)], events=[started])
        return Job(
            run, request, Agent(**{"name": "agent", "upstream": ("demo",), **step}), attempt, final=True, lease_ms=lease_ms
        )

    async def work(self, job: Job) -> StepResult:
        async with asyncio.timeout(WAIT_S):
            return await self.desk.work(job)

    async def events(self, run_id: str) -> list[Event]:
        """All that the log holds."""
        return [entry.event for entry in await self.log.read(run_id, 0, 100_000)]

    async def until(self, run_id: str, event_type: str | None = None, count: int = 1) -> None:
        """Until the run has said so many events of this type, or of any."""
        async with asyncio.timeout(WAIT_S), self.fanout.subscribe(run_id, Position(0)) as cursor:
            while count > 0:
                for item in await cursor.next(WAIT_S):
                    count -= isinstance(item, Entry) and event_type in (None, item.event.type)

    async def close(self) -> None:
        await self.fanout.close()


def types(events: list[Event]) -> list[str]:
    """The types in order, runs of deltas as one."""
    found: list[str] = []
    for event in events:
        if not (event.type == EventType.LLM_PARTIAL and found and found[-1] == EventType.LLM_PARTIAL):
            found.append(event.type)
    return found


def said(events: list[Event]) -> str:
    """The text that a reader has in the end."""
    text = ""
    for event in events:
        if event.type == EventType.OUTPUT_RESET:
            assert event.payload is not None
            text = text[: event.payload["offset"]]
        elif event.type == EventType.LLM_PARTIAL:
            text += event.message or ""
    return text
