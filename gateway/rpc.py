"""The gRPC door, with what it asks of the gateway: the key ring, the rules for tasks, the drain and the metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
from multidict import CIMultiDict

from gateway.access.caching import cache_use
from gateway.access.idempotency import idempotency
from gateway.access.keys import KeyRing
from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings, Tls
from gateway.transports.drain import Drain
from gateway.transports.tls import tls_context
from gateway.wire.task_bodies import ModelChoice, SubmitBody, parse_body, submission
from orchestrator.engine import Engine, Submission
from orchestrator.rpc.access import Authenticator, Metadata, Task, TaskRules
from orchestrator.rpc.server import Address, Listening, Pair, listening
from orchestrator.runs import Principal

log = logs.logger(__name__)

PORT = 50052
"""Where it listens if nobody says where, and nobody else does."""


@asynccontextmanager
async def grpc_door(
    settings: Settings,
    engine: Engine,
    keys: KeyRing,
    drain: Drain,
    metrics: GatewayMetrics,
    new_session_id: Callable[[], str],
    reuse_port: bool = False,
) -> AsyncIterator[Listening | None]:
    """Open inside, unless it is switched off. Raises OSError when a configured port cannot be had, TlsUnusable."""
    door = settings.grpc
    if not door.enabled:
        yield None
        return
    address = Address(
        host=door.host or settings.server.host,
        port=PORT if door.port is None else door.port,
        or_another=door.port is None,
        max_message_bytes=int(door.max_message_bytes),
        max_calls=door.max_calls,
        stall_timeout_s=settings.streams.stall_timeout_s,
        reuse_port=reuse_port,
        tls=None if settings.server.tls is None else _pair(settings.server.tls),
    )
    rules = task_rules(ModelChoice(settings.default_model, settings.tasks.tiers), new_session_id)
    async with listening(
        address, engine, authenticate=authenticator(keys), rules=rules, drain=drain, observer=metrics
    ) as listener:
        log.debug("grpc_listening", host=address.host, port=listener.port)
        yield listener


def _pair(tls: Tls) -> Pair:
    tls_context(tls.cert, tls.key, tls.min_version)  # gRPC would not say what is wrong with them
    return Pair(tls.cert.read_bytes(), tls.key.read_bytes())


def authenticator(keys: KeyRing) -> Authenticator:
    """Metadata are headers, and the same keys open all doors."""

    async def principal(metadata: Metadata) -> Principal:
        return await keys.principal(_headers(metadata))

    return principal


def _headers(metadata: Metadata) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in metadata if isinstance(value, str))


def task_rules(choice: ModelChoice, new_session_id: Callable[[], str]) -> TaskRules:
    """Those of `POST /api/v1/tasks`."""

    def submission_of(task: Task, principal: Principal, metadata: Metadata) -> Submission:
        body = parse_body(SubmitBody, msgspec.json.encode(task))
        begun = submission(body, choice.of(body), body.session_id or new_session_id())
        headers = _headers(metadata)
        repetition = idempotency(headers, principal, body.model_dump())
        return msgspec.structs.replace(begun, idempotency=repetition, cache=cache_use(headers))

    return submission_of
