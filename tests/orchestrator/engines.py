"""A working engine over the memory log and the scripted upstream, without Temporal: everything real but the wires."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator import assembly
from orchestrator.catalog import ModelEntry
from orchestrator.clock import Clock, SystemClock
from orchestrator.engine import Engine, Submission
from orchestrator.events import Entry, Event
from orchestrator.limits.limits import Limits, Unlimited
from orchestrator.metrics import Metrics, NoMetrics
from orchestrator.runs import Principal
from orchestrator.store.memory import MemoryRuns
from orchestrator.streamlog.log import Log
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Upstream
from orchestrator.workflows.worker import TemporalAddress

TOKENIZER = Tokenizer()
"""A vocabulary takes half a second and 100 MB: one for all engines of a test session."""

ACME = Principal("acme", "key-1")
OTHER = Principal("other", "key-2")
NOWHERE = TemporalAddress("127.0.0.1:1")

MODELS: Mapping[str, Any] = {
    "demo": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
    "durable": {"plan": {"agent": {"upstream": "demo"}}},
}


@asynccontextmanager
async def an_engine(
    *,
    store: MemoryStore | None = None,
    archive: MemoryRuns | None = None,
    upstream: Upstream | None = None,
    temporal: TemporalAddress = NOWHERE,
    models: Mapping[str, Any] = MODELS,
    metrics: Metrics | None = None,
    clock: Clock | None = None,
    temporal_wait_s: float = 0.0,
    log: Log | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> AsyncIterator[Engine]:
    """One process; give two of them the same stores and they are two replicas."""
    clock = clock or SystemClock()
    config = assembly.Configuration(
        data_dir=Path("unused"),
        redis=None,
        temporal=None,
        postgres=None,
        upstreams={"demo": ScriptedConfig(kind="scripted")},
        models={name: ModelEntry.model_validate(entry) for name, entry in models.items()},
        **{"drain_s": 0.0, **settings},
    )
    parts = assembly.Parts(
        log=log or MemoryLog(store or MemoryStore(clock.time)),
        store=archive or MemoryRuns(),
        upstreams={"demo": upstream or ScriptedUpstream("demo")},
        temporal=temporal,
        metrics=metrics or NoMetrics(),
        clock=clock,
        tokens=TOKENIZER,
        limits=limits or Unlimited(),
        owner="test",
        temporal_wait_s=temporal_wait_s,
    )
    async with assembly.engine(config, parts) as engine:
        yield engine


def script(text: str, model: str = "demo", **more: Any) -> Submission:
    """A request that plays this script."""
    return Submission(model, {"messages": [{"role": "user", "content": f"/script\n{text}"}]}, **more)


async def until(engine: Engine, run_id: str, event_type: str, principal: Principal = ACME, count: int = 1) -> list[Event]:
    """The run's events up to the one that was waited for."""
    seen: list[Event] = []
    async with engine.subscribe(principal, run_id) as subscription:
        while not subscription.ended:
            for item in await subscription.next(10.0):
                assert isinstance(item, Entry)
                seen.append(item.event)
                count -= item.event.type == event_type
                if not count:
                    return seen
    raise AssertionError(f"{event_type} never came: {[event.type for event in seen]}")
