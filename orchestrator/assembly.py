"""Puts an orchestrator together: backends, log, fan-out, archive, upstreams, agents, Temporal worker, janitor, engine.

Everything long-lived is a context manager entered here, so it is left in the opposite order, however the process ends.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from orchestrator.agents.desk import Desk
from orchestrator.approvals import Approvals
from orchestrator.cache.cache import Cache
from orchestrator.cache.exact import Exact
from orchestrator.cache.recordings import Recordings
from orchestrator.cache.similar import Similar
from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.clock import Clock, SystemClock
from orchestrator.control import Control
from orchestrator.embedded import embedded
from orchestrator.ender import Ender
from orchestrator.engine import Engine
from orchestrator.foreign import ForeignRuns
from orchestrator.gate import Gates
from orchestrator.herald import Herald
from orchestrator.inline import InlineRuns
from orchestrator.janitor import Janitor
from orchestrator.limits.keeper import Keeper
from orchestrator.limits.limits import LAPSE_S, Limits, Unlimited
from orchestrator.limits.redis import RedisLimits
from orchestrator.limits.terms import Policy
from orchestrator.listing import Records
from orchestrator.local import LocalEngine
from orchestrator.metrics import Metrics
from orchestrator.planning import Planner
from orchestrator.publishing import Publishing
from orchestrator.recall import Recall
from orchestrator.spending.spending import Spending
from orchestrator.stage import Stage
from orchestrator.store.postgres import Postgres
from orchestrator.store.questions import PostgresQuestions, Questions
from orchestrator.store.store import Store
from orchestrator.streamlog.archive import Archive
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import Log
from orchestrator.streamlog.redis import RedisLog
from orchestrator.submissions import Submissions
from orchestrator.tools.config import ToolConfig
from orchestrator.tools.registry import Tools
from orchestrator.upstreams.config import UpstreamConfig, secrets_of
from orchestrator.upstreams.factory import build, route
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Upstream
from orchestrator.workflows.activities import Activities
from orchestrator.workflows.worker import Temporal, TemporalAddress

_HAND_OVER_S = 2.0
"""How long agents may go on once the doors are closed. Their readers were given `drain_s` before; another process continues from
where they were, as soon as their leases are given back. More would only bring the kill nearer that follows a slow stop."""


class Configuration(msgspec.Struct, frozen=True):
    """What an orchestrator needs to know. A backend without an address is embedded, with its data under `data_dir`."""

    data_dir: Path
    redis: str | None
    temporal: TemporalAddress | None
    postgres: str | None
    upstreams: Mapping[str, UpstreamConfig]
    models: Mapping[str, ModelEntry]
    tools: Mapping[str, ToolConfig] = msgspec.field(default_factory=dict)
    retention_s: float = 86_400.0
    max_events_per_run: int = 500_000
    ring_bytes: int = 1 << 20
    writer_buffer_bytes: int = 1 << 20
    heartbeat_s: float = 5.0
    janitor_s: float = 5.0
    max_agents: int = 10_000
    drain_s: float = 20.0
    task_queue: str = "headgate"
    limits: Policy = Policy()


@asynccontextmanager
async def orchestrator(
    config: Configuration, metrics: Metrics, *, progress: Callable[[str], None], clock: Clock | None = None
) -> AsyncIterator[Engine]:
    """A working engine over real backends. Raises EmbeddedError when one of them cannot be started."""
    tools = Tools(config.tools, secrets=_secrets(config))  # what cannot be imported is told before anything starts
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(
            embedded(
                config.data_dir,
                redis=config.redis,
                temporal=config.temporal.target if config.temporal else None,
                postgres=config.postgres,
                progress=progress,
            )
        )
        owner = f"{os.getpid()}-{secrets.token_hex(4)}"
        store = await stack.enter_async_context(Postgres(addresses.postgres))
        retention_ms = round(config.retention_s * 1000)
        log = await stack.enter_async_context(
            RedisLog(addresses.redis, retention_ms=retention_ms, max_events=config.max_events_per_run)
        )
        lapse_s = max(LAPSE_S, 4 * config.janitor_s)  # the janitor renews what runs hold
        limits = await stack.enter_async_context(
            RedisLimits(log.connection, config.limits, retention_ms=retention_ms, lapse_s=lapse_s, metrics=metrics)
        )
        session = await stack.enter_async_context(upstream_session())
        clock = clock or SystemClock()
        parts = Parts(
            log=log,
            store=store,
            upstreams=build(config.upstreams, session, clock.time),
            temporal=config.temporal or TemporalAddress(addresses.temporal),
            metrics=metrics,
            clock=clock,
            owner=owner,
            tokens=Tokenizer(),
            limits=limits,
            questions=await _questions(config, addresses.postgres, stack),
        )
        yield await stack.enter_async_context(engine(config, parts, tools))


async def _questions(config: Configuration, dsn: str, stack: AsyncExitStack) -> Questions | None:
    """Raises VectorsMissing."""
    if not any(entry.cache is not None and entry.cache.semantic is not None for entry in config.models.values()):
        return None
    return await stack.enter_async_context(PostgresQuestions(dsn))


class Parts(msgspec.Struct, frozen=True):
    """What an engine stands on. `owner` names this process; `temporal_wait_s` is how long a start waits for Temporal.

    `questions` are there if a model has a semantic cache.
    """

    log: Log
    store: Store
    upstreams: Mapping[str, Upstream]
    temporal: TemporalAddress
    metrics: Metrics
    clock: Clock
    owner: str
    tokens: Tokenizer
    limits: Limits = Unlimited()
    temporal_wait_s: float = 10.0
    questions: Questions | None = None


@asynccontextmanager
async def _cache(parts: Parts, fanout: Fanout) -> AsyncIterator[Cache]:
    log, metrics, clock = parts.log, parts.metrics, parts.clock
    recordings = Recordings(log)
    exact = Exact(log, recordings)
    if parts.questions is None:
        yield Cache(exact, None, log, fanout, metrics, clock)
        return
    embedders = {name: upstream for name, upstream in parts.upstreams.items() if isinstance(upstream, OpenAIUpstream)}
    similar = Similar(parts.questions, embedders, recordings, fanout, metrics, clock)
    try:
        yield Cache(exact, similar, log, fanout, metrics, clock)
    finally:
        await similar.close()


@asynccontextmanager
async def engine(config: Configuration, parts: Parts, tools: Tools | None = None) -> AsyncIterator[LocalEngine]:
    """A working engine over these parts. Without `tools`, those of the configuration."""
    log, store, metrics, clock = parts.log, parts.store, parts.metrics, parts.clock
    lease_ms = round(config.heartbeat_s * 1000)
    async with AsyncExitStack() as stack:
        spending = Spending(log, parts.limits, parts.tokens)
        archive = await stack.enter_async_context(Archive(log, store, parts.owner, settle=spending.settle_as, metrics=metrics))
        fanout = Fanout(log, archive, metrics=metrics, ring_bytes=config.ring_bytes)
        stack.push_async_callback(fanout.close)
        ender, herald, gates = Ender(log, metrics, clock, spending), Herald(log, clock), Gates()
        records = Records(log, store, clock)
        approvals = Approvals(log, records, herald, clock)
        stage = Stage(log, ender, herald, approvals, clock)
        tools = tools or Tools(config.tools, secrets=_secrets(config))
        await stack.enter_async_context(tools.running())
        desk = Desk(
            log=log,
            fanout=fanout,
            tools=tools,
            router=route(config.upstreams, parts.upstreams, metrics, clock.time),
            tokens=parts.tokens,
            metrics=metrics,
            clock=clock,
            spending=spending,
            buffer_bytes=config.writer_buffer_bytes,
        )
        await stack.enter_async_context(desk.ticking())
        temporal = Temporal(
            parts.temporal,
            Activities(
                log=log,
                desk=desk,
                stage=stage,
                gates=gates,
                ender=ender,
                foreign=ForeignRuns(log, ender, parts.tokens, clock),
            ),
            task_queue=config.task_queue,
            heartbeat_s=config.heartbeat_s,
            max_agents=config.max_agents,
            drain_s=min(config.drain_s, _HAND_OVER_S),
        )
        await stack.enter_async_context(temporal.working(parts.temporal_wait_s))
        janitor = Janitor(log, ender, temporal, Keeper(log.run, parts.limits), clock, owner=parts.owner, round_s=config.janitor_s)
        await stack.enter_async_context(janitor.working())
        inline = InlineRuns(stage, desk, ender, gates, lease_ms=lease_ms)
        stack.push_async_callback(inline.close)
        cache = await stack.enter_async_context(_cache(parts, fanout))
        control = Control(log=log, records=records, herald=herald, approvals=approvals, desk=desk, gates=gates, temporal=temporal)
        stack.push_async_callback(control.close)
        catalog = Catalog(config.models)
        submissions = Submissions(
            log=log,
            fanout=fanout,
            store=store,
            planner=Planner(catalog, config.upstreams, config.tools),
            recall=Recall(log, records, parts.tokens),
            inline=inline,
            temporal=temporal,
            ender=ender,
            limits=parts.limits,
            tokens=parts.tokens,
            cache=cache,
            metrics=metrics,
            clock=clock,
            random_bytes=secrets.token_bytes,
        )
        stack.push_async_callback(submissions.close)
        yield LocalEngine(
            log=log,
            fanout=fanout,
            store=store,
            records=records,
            submissions=submissions,
            control=control,
            publishing=Publishing(log, approvals, clock),
            catalog=catalog,
            upstreams=parts.upstreams,
            temporal=temporal,
            limits=parts.limits,
            clock=clock,
        )


def _secrets(config: Configuration) -> list[str]:
    """What models might be made to tell tools, and no log is to have."""
    passwords = [unquote(urlsplit(url).password or "") for url in (config.redis, config.postgres) if url is not None]
    key = None if config.temporal is None else config.temporal.api_key
    return [*secrets_of(config.upstreams), *passwords, *([] if key is None else [key])]
