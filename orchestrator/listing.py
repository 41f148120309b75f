"""Looking at runs: one with its result, many, their events, and the sessions that group them.

What is unfinished or ended a moment ago is read from the log, everything else from the archive; the two are told apart by the
log's own list of what is not archived, so nothing is missing and nothing is there twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from orchestrator.clock import Clock
from orchestrator.endings import outcome
from orchestrator.engine import Details, History, Listing, Session, SessionListing
from orchestrator.errors import RunNotFound, SessionNotFound
from orchestrator.events import ENDINGS, Entry, Event, EventType
from orchestrator.runs import Principal, Run, RunFilter, RunState, Scope, is_run_id
from orchestrator.spending.ledger import usage_of
from orchestrator.spending.report import MOST_ROWS, UsageQuery, UsageReport
from orchestrator.store.store import SessionRow, Store
from orchestrator.streamlog.log import Log

_PAGE = 1000
_MOST_LOOKED_AT = 20 * _PAGE
"""Entries that one request for filtered history looks at; it then tells where to go on."""


class Records:
    """What was and what is, of one tenant's runs at a time."""

    def __init__(self, log: Log, store: Store, clock: Clock) -> None:
        self._log = log
        self._store = store
        self._clock = clock

    async def run(self, principal: Principal, run_id: str) -> Run:
        """Raises RunNotFound for what is missing, foreign, or cannot be a run's id."""
        run = await self._log.run(run_id) if is_run_id(run_id) else None
        if run is not None and run.tenant == principal.tenant:
            return run
        # A foreign run takes the same way as a missing one, so that an archive that is away does not tell the two apart.
        run = await self._store.run(run_id) if is_run_id(run_id) else None
        if run is None or run.tenant != principal.tenant:
            raise RunNotFound
        return run

    async def details(self, principal: Principal, run_id: str) -> Details:
        run = await self.run(principal, run_id)
        events = [entry.event for entry in await self.kept(run_id)]
        ending = next((event for event in reversed(events) if event.type in ENDINGS), None)
        if ending is None:
            return Details(run, usage=usage_of(events), progress=_progress(events))
        payload, found = ending.payload or {}, outcome(ending)
        return Details(
            run=run,
            result=payload.get("result"),
            usage=usage_of(events),
            failure=None if found is None else found.failure,
            reason=None if found is None else found.reason,
            progress=1.0 if run.state is RunState.COMPLETED else _progress(events),
        )

    async def kept(self, run_id: str) -> list[Entry]:
        """All of a run's entries but deltas, from the log or from the archive."""
        entries = await self._log.kept(run_id)
        if entries:
            return entries
        while page := await self._store.entries(run_id, entries[-1].seq if entries else 0, _PAGE):
            entries += page
        return entries

    async def page(self, principal: Principal, which: RunFilter, offset: int, limit: int) -> Listing:
        recent = await self._unarchived(principal.tenant)
        known = [run.id for run in recent]
        shown = [run for run in recent if which.lets_through(run)]
        mine = shown[offset : offset + limit]
        archived, total = await self._store.runs(
            principal.tenant,
            which,
            offset=max(0, offset - len(shown)),
            limit=limit - len(mine),
            without=known,
        )
        return Listing(mine + archived, len(shown) + total)

    async def history(self, principal: Principal, run_id: str, after_seq: int, limit: int, types: Collection[str]) -> History:
        await self.run(principal, run_id)
        found: list[Entry] = []
        looked_at = 0
        while len(found) < limit and looked_at < _MOST_LOOKED_AT:
            page = await self._page(run_id, after_seq, _PAGE if types else limit)
            for entry in page:
                after_seq = entry.seq
                looked_at += 1
                if not types or entry.event.type in types:
                    found.append(entry)
                    if len(found) == limit:
                        break
            if not page or (page[-1].is_end and after_seq == page[-1].seq):
                return History(found, after_seq, complete=bool(page) or await self._closed(run_id))
        return History(found, after_seq, complete=False)

    async def usage(self, principal: Principal, query: UsageQuery) -> UsageReport:
        """What runs used that have ended. Whoever may not see all of the tenant's sees those of the key that asks."""
        now_ms = int(self._clock.time() * 1000)
        waiting = [run.ended_ms - 1 for run in await self._log.unarchived_runs(principal.tenant) if run.ended_ms is not None]
        key_id = None if principal.may(Scope.ADMIN) else principal.key_id
        rows = await self._store.usage(principal.tenant, query, key_id)
        return UsageReport(rows[:MOST_ROWS], min([now_ms, *waiting]), truncated=len(rows) > MOST_ROWS)

    # -- sessions --------------------------------------------------------------------------------------------------------

    async def sessions(self, principal: Principal, offset: int, limit: int) -> SessionListing:
        """What is archived of a session that is in use counts too, however long ago that was."""
        tenant, recent = principal.tenant, await self._unarchived(principal.tenant)
        used = {run.session_id for run in recent if run.session_id is not None}
        without = [run.id for run in recent]
        rows = await self._store.sessions(tenant, limit=offset + limit, without=without)
        if missing := used - {row.id for row in rows}:
            rows += await self._store.sessions(tenant, only=sorted(missing), limit=len(missing), without=without)
        total = len(used) + await self._store.count_sessions(tenant, but=sorted(used), without=without)
        return SessionListing((await self._joined(tenant, rows, recent))[offset : offset + limit], total)

    async def session(self, principal: Principal, session_id: str) -> Session:
        recent = await self._unarchived(principal.tenant)
        rows = await self._store.sessions(principal.tenant, only=[session_id], limit=1, without=[run.id for run in recent])
        found = await self._joined(principal.tenant, rows, [run for run in recent if run.session_id == session_id])
        if not found:
            raise SessionNotFound
        return found[0]

    async def title_session(self, principal: Principal, session_id: str, title: str) -> Session:
        session = await self.session(principal, session_id)
        await self._store.title_session(principal.tenant, session_id, title)
        return msgspec.structs.replace(session, title=title)

    async def delete_session(self, principal: Principal, session_id: str) -> None:
        await self.session(principal, session_id)
        await self._store.delete_session(principal.tenant, session_id, int(self._clock.time() * 1000))

    async def _joined(self, tenant: str, rows: Sequence[SessionRow], recent: Sequence[Run]) -> list[Session]:
        """The latest used first, as the archive's rows and the other runs tell together."""
        sessions = {row.id: Session(**msgspec.structs.asdict(row)) for row in rows}
        ids = sorted({run.session_id for run in recent if run.session_id is not None})
        known = await self._store.known_sessions(tenant, ids) if ids else {}
        for run in recent:
            name = run.session_id
            if name is None:
                continue
            title = known[name].title if name in known else None
            before = sessions.get(name) or Session(name, 0, run.created_ms, run.created_ms, title)
            sessions[name] = msgspec.structs.replace(
                before,
                runs=before.runs + 1,
                created_ms=min(before.created_ms, run.created_ms),
                updated_ms=max(before.updated_ms, run.ended_ms or run.created_ms),
                tokens=before.tokens + await self._tokens(run),
            )
        return sorted(sessions.values(), key=lambda each: (-each.updated_ms, each.id))

    async def _tokens(self, run: Run) -> int:
        """What a run that is not archived yet has used so far. One that was answered from the cache uses nothing."""
        if run.cached is not None:
            return 0
        usage = usage_of([entry.event for entry in await self.kept(run.id)])
        return 0 if usage is None else usage.total_tokens

    async def _unarchived(self, tenant: str) -> list[Run]:
        """Without the runs of sessions that were deleted since."""
        runs = await self._log.unarchived_runs(tenant)
        ids = sorted({run.session_id for run in runs if run.session_id is not None})
        known = await self._store.known_sessions(tenant, ids) if ids else {}
        return [
            run
            for run in runs
            if run.session_id is None or run.session_id not in known or run.created_ms > known[run.session_id].deleted_ms
        ]

    async def _page(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        return await self._log.read(run_id, after_seq, limit) or await self._store_page(run_id, after_seq, limit)

    async def _store_page(self, run_id: str, after_seq: int, limit: int) -> list[Entry]:
        """The archive's, if the log has expired; not when the log merely has nothing more."""
        if await self._log.tail(run_id) is not None:
            return []
        return await self._store.entries(run_id, after_seq, limit)

    async def _closed(self, run_id: str) -> bool:
        tail = await self._log.tail(run_id)
        return tail is None or tail.closed


_NEARLY = 0.99
"""All steps have finished, and the run is about to say so."""


def _progress(events: Sequence[Event]) -> float:
    """What the run's plan said last."""
    told = [event.payload.get("progress") for event in events if event.type == EventType.PROGRESS and event.payload]
    return min(max((float(one) for one in told if isinstance(one, int | float)), default=0.0), _NEARLY)
