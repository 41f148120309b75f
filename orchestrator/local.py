"""The engine in this process: what a door may ask, handed on to those who do it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Literal

from orchestrator.catalog import Catalog, Resolved
from orchestrator.clock import Clock
from orchestrator.control import Control
from orchestrator.engine import (
    Approval,
    ControlState,
    Decision,
    Dependency,
    Details,
    History,
    Listing,
    Publication,
    Published,
    Session,
    SessionListing,
    Submission,
    Subscription,
    TimelineEvent,
)
from orchestrator.errors import HeadgateError
from orchestrator.issuing import Issuing
from orchestrator.keys import ApiKey, Fingerprint, Rotated, StoredKey
from orchestrator.limits.limits import Limits
from orchestrator.limits.quota import Allowance
from orchestrator.listing import Records
from orchestrator.publishing import Publishing
from orchestrator.runs import (
    ALL_RUNS,
    EVERYDAY,
    Principal,
    Run,
    RunFilter,
    Scope,
)
from orchestrator.spending.report import UsageQuery, UsageReport
from orchestrator.store.store import Store
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import BEGINNING, Log, Position
from orchestrator.submissions import Submissions
from orchestrator.upstreams.upstream import ModelCard, Upstream, UpstreamError
from orchestrator.workflows.worker import Temporal

_log = logging.getLogger(__name__)


class LocalEngine:
    """`engine.Engine` over the log, the desk and Temporal of this process."""

    def __init__(
        self,
        *,
        log: Log,
        fanout: Fanout,
        store: Store,
        records: Records,
        submissions: Submissions,
        control: Control,
        publishing: Publishing,
        catalog: Catalog,
        upstreams: Mapping[str, Upstream],
        temporal: Temporal,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._log = log
        self._fanout = fanout
        self._store = store
        self._records = records
        self._submissions = submissions
        self._control = control
        self._publishing = publishing
        self._catalog = catalog
        self._upstreams = upstreams
        self._temporal = temporal
        self._limits = limits
        self._issuing = Issuing(store.keys, clock)

    def resolve(self, model: str) -> Resolved:
        return self._catalog.resolve(model)

    async def submit(self, principal: Principal, submission: Submission) -> Run:
        return await self._submissions.submit(principal, submission)

    async def get(self, principal: Principal, run_id: str) -> Run:
        return await self._records.run(principal, run_id)

    async def details(self, principal: Principal, run_id: str) -> Details:
        return await self._records.details(principal, run_id)

    async def list(self, principal: Principal, which: RunFilter = ALL_RUNS, *, offset: int = 0, limit: int = 20) -> Listing:
        return await self._records.page(principal, which, offset, limit)

    async def history(
        self, principal: Principal, run_id: str, *, after_seq: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> History:
        return await self._records.history(principal, run_id, after_seq, limit, types)

    async def timeline(self, principal: Principal, run_id: str, *, full: bool = False) -> Sequence[TimelineEvent]:
        run = await self._records.run(principal, run_id)
        return await self._temporal.timeline(run.id, full=full) if run.durable else ()

    async def sessions(self, principal: Principal, *, offset: int = 0, limit: int = 20) -> SessionListing:
        return await self._records.sessions(principal, offset, limit)

    async def session(self, principal: Principal, session_id: str) -> Session:
        return await self._records.session(principal, session_id)

    async def title_session(self, principal: Principal, session_id: str, title: str) -> Session:
        return await self._records.title_session(principal, session_id, title)

    async def delete_session(self, principal: Principal, session_id: str) -> None:
        await self._records.delete_session(principal, session_id)

    async def usage(self, principal: Principal, query: UsageQuery) -> UsageReport:
        return await self._records.usage(principal, query)

    async def cancel(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.cancel(principal, run_id, reason)

    async def pause(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.pause(principal, run_id, reason)

    async def resume(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        return await self._control.resume(principal, run_id, reason)

    async def control_state(self, principal: Principal, run_id: str) -> ControlState:
        return await self._control.state(principal, run_id)

    async def publish(self, principal: Principal, run_id: str, publication: Publication) -> Published:
        run_id, _, step = run_id.partition("/")  # a workflow that is a step of the run has both in its id
        return await self._publishing.publish(await self._records.run(principal, run_id), publication, step=step)

    async def approvals(self, principal: Principal, session_id: str | None = None) -> Sequence[Approval]:
        return await self._control.approvals(principal, session_id)

    async def decide(self, principal: Principal, run_id: str, decision: Decision) -> None:
        await self._control.decide(principal, run_id, decision)

    async def create_key(
        self,
        principal: Principal,
        fingerprint: Fingerprint,
        name: str,
        scopes: frozenset[Scope] = EVERYDAY,
        expires_ms: int | None = None,
        limits: Allowance | None = None,
    ) -> ApiKey:
        return await self._issuing.create(
            principal.tenant, fingerprint, name, scopes=scopes, expires_ms=expires_ms, limits=limits
        )

    async def list_keys(self, principal: Principal) -> Sequence[ApiKey]:
        return await self._issuing.list(principal.tenant)

    async def revoke_key(self, principal: Principal, key_id: str) -> ApiKey:
        return await self._issuing.revoke(principal.tenant, key_id)

    async def rotate_key(self, principal: Principal, key_id: str, fingerprint: Fingerprint, overlap_ms: int = 0) -> Rotated:
        return await self._issuing.rotate(principal.tenant, key_id, fingerprint, overlap_ms)

    async def find_keys(self, prefix: str) -> Sequence[StoredKey]:
        return await self._store.keys.find(prefix)

    async def key_states(self, key_ids: Sequence[str]) -> Sequence[ApiKey]:
        return [found.key for found in await self._store.keys.get(key_ids)]

    async def touch_keys(self, used_ms: Mapping[str, int]) -> None:
        await self._store.keys.touch(used_ms)

    async def shared_secret(self, name: str, proposed: bytes) -> bytes:
        return await self._store.keys.secret(name, proposed)

    @asynccontextmanager
    async def subscribe(
        self, principal: Principal, run_id: str, position: Position = BEGINNING, *, answers: bool = False
    ) -> AsyncIterator[Subscription]:
        if self._fanout.tenant(run_id) != principal.tenant:
            await self.get(principal, run_id)
        place = nullcontext() if answers else self._limits.reading(principal)
        async with place, self._fanout.subscribe(run_id, position) as cursor:
            yield cursor

    async def models(self) -> Sequence[ModelCard]:
        cards = {name: ModelCard(name, owned_by=entry.owned_by) for name, entry in self._catalog.named()}
        asked = [
            (prefix, next(iter(agent.upstream)))
            for prefix, entry in self._catalog.patterns()
            if entry.plan is not None
            for _, agent in entry.plan.agents()
            if agent.model is None
        ]
        names = dict.fromkeys(upstream for _, upstream in asked)
        served = dict(zip(names, await asyncio.gather(*map(self._served, names)), strict=True))
        for prefix, upstream in asked:
            for card in served[upstream]:
                cards.setdefault(prefix + card.id, ModelCard(prefix + card.id, card.created, card.owned_by))
        return list(cards.values())

    async def _served(self, upstream: str) -> Sequence[ModelCard]:
        try:
            return await self._upstreams[upstream].models()
        except UpstreamError as error:
            _log.info("the models of an upstream are not known: %s", error.code)
            return ()

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        redis, temporal, postgres = await asyncio.gather(
            _probe(self._log.ping(), required=True),
            _probe(self._temporal.ping(), required=False),
            _probe(self._store.ping(), required=False),
        )
        return {"redis": redis, "temporal": temporal, "postgres": postgres}


async def _probe(ping: Awaitable[None], *, required: bool) -> Dependency:
    try:
        async with asyncio.timeout(2.0):
            await ping
    except TimeoutError:
        return Dependency(False, required, "does not answer")
    except HeadgateError as error:
        return Dependency(False, required, error.message)
    return Dependency(True, required)
