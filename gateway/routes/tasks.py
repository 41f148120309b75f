"""`/api/v1/tasks`: submit a task, find it again, read what it said and what was done for it.

A task's submitter may leave at once: the run goes on whatever becomes of its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from gateway.access import caching
from gateway.access.caching import cache_found, cache_use
from gateway.access.idempotency import REPLAYED, SENT, idempotency
from gateway.access.rules import Access
from gateway.departures import Departures
from gateway.edge import PRINCIPAL, about_run
from gateway.routes.native import answer, asked, run_id
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.wire.operation import Operation, Reply
from gateway.wire.rate_limits import RATE_LIMITS
from gateway.wire.rest import event_page, submitted, submitted_stream, summary, task, timeline
from gateway.wire.rest_models import EventPage, Submitted, SubmittedStream, Task, TaskList, Timeline
from gateway.wire.task_bodies import (
    EventsQuery,
    ModelChoice,
    RedirectQuery,
    SubmitBody,
    TasksQuery,
    TimelineQuery,
    parse_query,
    submission,
)
from orchestrator.engine import Engine
from orchestrator.runs import Run, RunFilter

STREAM = "/api/v1/stream/sse"

_NAMES = {"X-Workflow-ID": "The task's id.", "X-Session-ID": "The session that the task belongs to."}
_TAKEN = {**_NAMES, **REPLAYED, **caching.TOLD, **RATE_LIMITS}
_ASKED = {**SENT, **caching.SENT}
_LINKS = {**_TAKEN, "Link": "`<…>; rel=stream`: the same as `stream_url`.", "Location": "The task."}

_SUBMIT = Operation(
    "tasks", (Reply(200, "Taken on.", Submitted, headers=_TAKEN),), body=SubmitBody, headers=_ASKED, refusals=(404, 409, 429, 503)
)
_SUBMIT_STREAM = Operation(
    "tasks",
    (Reply(201, "Taken on.", SubmittedStream, headers=_LINKS),),
    body=SubmitBody,
    headers=_ASKED,
    refusals=(404, 409, 429, 503),
)
_LIST = Operation("tasks", (Reply(200, "A page of tasks.", TaskList),), query=TasksQuery, refusals=(503,))
_GET = Operation("tasks", (Reply(200, "The task.", Task),))
_EVENTS = Operation("tasks", (Reply(200, "A page of events.", EventPage),), query=EventsQuery)
_TIMELINE = Operation("tasks", (Reply(200, "The history.", Timeline),), query=TimelineQuery, refusals=(503,))
_REDIRECT = Operation("tasks", (Reply(307, "Go there.", media=None, headers={"Location": "The stream."}),), query=RedirectQuery)


class TaskRoutes:
    def __init__(
        self, settings: Settings, engine: Engine, drain: Drain, departures: Departures, new_session_id: Callable[[], str]
    ) -> None:
        self._engine = engine
        self._drain = drain
        self._departures = departures
        self._new_session_id = new_session_id
        self._max_body_bytes = int(settings.server.max_body_bytes)
        self._choice = ModelChoice(settings.default_model, settings.tasks.tiers)
        self._sdk_retries = settings.runs.sdk_retries

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/api/v1/tasks", Access.WRITE, self.submit, _SUBMIT),
            Route("POST", "/api/v1/tasks/stream", Access.WRITE, self.submit_stream, _SUBMIT_STREAM),
            Route("GET", "/api/v1/tasks", Access.READ, self.list, _LIST),
            Route("GET", "/api/v1/tasks/{id:[^/]+}", Access.READ, self.get, _GET),
            Route("GET", "/api/v1/tasks/{id:[^/]+}/stream", Access.READ, self.stream, _REDIRECT),
            Route("GET", "/api/v1/tasks/{id:[^/]+}/events", Access.READ, self.events, _EVENTS),
            Route("GET", "/api/v1/tasks/{id:[^/]+}/timeline", Access.READ, self.timeline, _TIMELINE),
        ]

    async def submit(self, request: web.Request) -> web.Response:
        """Submit a task.

        It goes on whatever becomes of this connection, until it ends or somebody cancels it. A task that names no model gets the
        one that the configuration has for its `model_tier`, else the configuration's default.
        """
        run = await self._submitted(request)
        return answer(submitted(run), headers={"X-Session-ID": run.session_id or ""})

    async def submit_stream(self, request: web.Request) -> web.Response:
        """Submit a task, and be told where to watch it.

        As above; the answer also says where the task's events are.
        """
        run = await self._submitted(request)
        stream_url = f"{STREAM}?workflow_id={run.id}"
        headers = {
            "X-Session-ID": run.session_id or "",
            "Location": f"/api/v1/tasks/{run.id}",
            "Link": f"<{stream_url}>; rel=stream",
        }
        return answer(submitted_stream(run, stream_url), status=201, headers=headers)

    async def list(self, request: web.Request) -> web.Response:
        """List tasks, newest first."""
        query = parse_query(TasksQuery, request.query)
        which = RunFilter(query.session_id, query.status)
        found = await self._engine.list(request[PRINCIPAL], which, offset=query.offset, limit=query.limit)
        return answer(TaskList(tasks=[summary(run) for run in found.runs], total_count=found.total))

    async def get(self, request: web.Request) -> web.Response:
        """Look at a task: its state, and its result or why it has none."""
        details = await self._engine.details(request[PRINCIPAL], run_id(request))
        about_run(request, details.run.id)
        return answer(task(details))

    async def stream(self, request: web.Request) -> web.Response:
        """Go to a task's event stream.

        A redirect to `GET /api/v1/stream/sse` for clients that only know the task; its other parameters are handed on.
        """
        query = parse_query(RedirectQuery, request.query)
        run = await self._engine.get(request[PRINCIPAL], run_id(request))
        about_run(request, run.id)
        where = urlencode({"workflow_id": run.id} | query.model_dump(exclude_none=True))
        return web.Response(status=307, headers={"Location": f"{STREAM}?{where}"})

    async def events(self, request: web.Request) -> web.Response:
        """Read a task's events, page by page.

        Begin without `after`, go on with `next_after` of each page, and stop at one that is `complete`. A page of a task that
        goes on may be empty: ask again later, or read its stream.
        """
        query = parse_query(EventsQuery, request.query)
        named = run_id(request)
        history = await self._engine.history(
            request[PRINCIPAL], named, after_seq=query.after, limit=query.limit, types=query.types
        )
        about_run(request, named)
        return answer(event_page(named, history))

    async def timeline(self, request: web.Request) -> web.Response:
        """Read what Temporal did for a task.

        Its workflow history in words. Reading it changes nothing.
        """
        query = parse_query(TimelineQuery, request.query)
        named = run_id(request)
        steps = await self._engine.timeline(request[PRINCIPAL], named, full=query.mode == "full")
        about_run(request, named)
        return answer(timeline(named, query.mode, steps))

    async def _submitted(self, request: web.Request) -> Run:
        wanted = await asked(request, SubmitBody, max_bytes=self._max_body_bytes)
        begun = msgspec.structs.replace(
            submission(wanted, self._choice.of(wanted), wanted.session_id or self._new_session_id()),
            idempotency=idempotency(request.headers, request[PRINCIPAL], wanted.model_dump(), sdk_retries=self._sdk_retries),
            cache=cache_use(request.headers),
        )
        entry = self._engine.resolve(begun.model).entry
        with self._drain.answer():
            async with self._departures.requester(request[PRINCIPAL], begun, "continue") as run:
                about_run(request, run.id, repeated=run.repeated, cache=cache_found(entry, run), quota=run.quota)
                return run
