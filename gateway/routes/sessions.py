"""`/api/v1/sessions`: tasks that share a session id, as the conversation that they are."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from gateway.access.rules import Access
from gateway.edge import PRINCIPAL
from gateway.routes.native import answer, asked, session_id
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.wire import rest
from gateway.wire.operation import Operation, Reply
from gateway.wire.rest_models import SessionHistory, SessionList, SessionSummary, SessionTurns
from gateway.wire.task_bodies import HistoryQuery, PageQuery, TitleBody, TurnsQuery, parse_query
from orchestrator.engine import Engine, Listing
from orchestrator.events import Entry
from orchestrator.runs import Principal, RunFilter

_PATH = {"id": "The session's id."}
_LIST = Operation("sessions", (Reply(200, "A page of sessions.", SessionList),), query=PageQuery, refusals=(503,))
_GET = Operation("sessions", (Reply(200, "The session.", SessionSummary),), path=_PATH, refusals=(503,))
_HISTORY = Operation("sessions", (Reply(200, "Its tasks.", SessionHistory),), query=HistoryQuery, path=_PATH, refusals=(503,))
_EVENTS = Operation("sessions", (Reply(200, "Its turns.", SessionTurns),), query=TurnsQuery, path=_PATH, refusals=(503,))
_TITLE = Operation("sessions", (Reply(200, "The session.", SessionSummary),), body=TitleBody, path=_PATH, refusals=(503,))
_DELETE = Operation("sessions", (Reply(204, "Forgotten.", media=None),), path=_PATH, refusals=(503,))

_PAGE = 1000


class SessionRoutes:
    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._max_body_bytes = int(settings.server.max_body_bytes)

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/api/v1/sessions", Access.READ, self.list, _LIST),
            Route("GET", "/api/v1/sessions/{id:[^/]+}", Access.READ, self.get, _GET),
            Route("GET", "/api/v1/sessions/{id:[^/]+}/history", Access.READ, self.history, _HISTORY),
            Route("GET", "/api/v1/sessions/{id:[^/]+}/events", Access.READ, self.events, _EVENTS),
            Route("PATCH", "/api/v1/sessions/{id:[^/]+}", Access.WRITE, self.title, _TITLE),
            Route("DELETE", "/api/v1/sessions/{id:[^/]+}", Access.WRITE, self.delete, _DELETE),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List sessions, the latest used first."""
        principal = request[PRINCIPAL]
        query = parse_query(PageQuery, request.query)
        found = await self._engine.sessions(principal, offset=query.offset, limit=query.limit)
        sessions = [rest.session(each, principal.tenant) for each in found.sessions]
        return answer(SessionList(sessions=sessions, total_count=found.total))

    async def get(self, request: web.Request) -> web.Response:
        """Look at a session."""
        principal = request[PRINCIPAL]
        return answer(rest.session(await self._engine.session(principal, session_id(request)), principal.tenant))

    async def history(self, request: web.Request) -> web.Response:
        """Read a session as its questions and results, oldest first."""
        principal, named = request[PRINCIPAL], session_id(request)
        query = parse_query(HistoryQuery, request.query)
        found, _ = await self._turns(principal, named, query)
        tasks = [rest.session_task(await self._engine.details(principal, run.id)) for run in found.runs]
        return answer(SessionHistory(session_id=named, tasks=tasks, total_count=found.total))

    async def events(self, request: web.Request) -> web.Response:
        """Read a session's events, task by task, oldest first.

        The deltas of texts are left out, because `LLM_OUTPUT` has each text whole.
        """
        principal, named = request[PRINCIPAL], session_id(request)
        query = parse_query(TurnsQuery, request.query)
        found, first = await self._turns(principal, named, query)
        turns = []
        for number, run in enumerate(found.runs, first):
            details = await self._engine.details(principal, run.id)
            turns.append(rest.turn(number, details, await self._without_deltas(principal, run.id)))
        return answer(rest.session_turns(named, turns, found.total))

    async def title(self, request: web.Request) -> web.Response:
        """Give a session a title."""
        principal, named = request[PRINCIPAL], session_id(request)
        wanted = await asked(request, TitleBody, max_bytes=self._max_body_bytes)
        return answer(rest.session(await self._engine.title_session(principal, named, wanted.title), principal.tenant))

    async def delete(self, request: web.Request) -> web.Response:
        """Forget a session.

        It and its tasks are no longer listed. A task of it that goes on is not cancelled.
        """
        await self._engine.delete_session(request[PRINCIPAL], session_id(request))
        return web.Response(status=204)

    async def _turns(self, principal: Principal, named: str, query: PageQuery) -> tuple[Listing, int]:
        """Tasks of a session in their order, and the number of the first. Raises SessionNotFound.

        The engine lists the newest first, so the page is cut from the other end. Whatever is added meanwhile, the numbers hold.
        """
        await self._engine.session(principal, named)
        which = RunFilter(session_id=named)
        total = (await self._engine.list(principal, which, limit=1)).total
        offset = max(total - query.offset - query.limit, 0)
        limit = min(query.limit, total - query.offset)
        if limit <= 0:
            return Listing([], total), 1
        found = await self._engine.list(principal, which, offset=offset, limit=limit)
        return Listing(found.runs[::-1], found.total), found.total - offset - len(found.runs) + 1

    async def _without_deltas(self, principal: Principal, run_id: str) -> Sequence[Entry]:
        kept: list[Entry] = []
        after = 0
        while True:
            page = await self._engine.history(principal, run_id, after_seq=after, limit=_PAGE)
            kept += [entry for entry in page.entries if not entry.is_delta]
            if page.complete or not page.entries:
                return kept
            after = page.next_after
