"""Progress: of a task that runs, of one that is started here, and of several at once.

Whoever watches may come and go: leaving stops nothing, and coming back with the last position misses nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from time import monotonic

import msgspec
from aiohttp import web

from gateway.access import caching
from gateway.access.caching import cache_found, cache_use
from gateway.access.idempotency import REPLAYED, SENT, idempotency
from gateway.access.rules import Access
from gateway.departures import Departures
from gateway.edge import PRINCIPAL, about_run, only_run
from gateway.errors import StreamGap
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.native import asked
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.transports.compressed import CompressedSink
from gateway.transports.counted import counted
from gateway.transports.drain import Drain
from gateway.transports.pump import Pace, Pump
from gateway.transports.sink import EVENT_STREAM_HEADERS, EventStreamSink
from gateway.wire.event_types import SSE_NAMES
from gateway.wire.merged import Merged, Shown, Strand, parse_cursor
from gateway.wire.operation import EVENT_STREAM, Operation, Reply
from gateway.wire.progress import ProgressEncoder, ProgressFold
from gateway.wire.progress_bodies import MAX_RUNS, ExecuteBody, MultiQuery, ProgressOptions, ProgressQuery, execution
from gateway.wire.rate_limits import RATE_LIMITS
from gateway.wire.task_bodies import parse_query
from orchestrator.access import allow
from orchestrator.engine import Engine, Subscription
from orchestrator.errors import InvalidPosition, InvalidRequest, RunNotFound
from orchestrator.events import ENDINGS, Entry, EventType
from orchestrator.runs import Principal, Run, Scope, is_run_id
from orchestrator.streamlog.log import BEGINNING, Position, parse_position

_HEADERS = {**EVENT_STREAM_HEADERS, "Cache-Control": "no-cache, no-transform"}
_STREAMED = {"X-Workflow-ID": "The task."}
_RESUMED = {"Last-Event-ID": "The position after which to begin. Wins over `last_event_id`."}
_encode = msgspec.json.Encoder().encode

_PROGRESS = Operation(
    "progress",
    (Reply(200, "The progress.", media=EVENT_STREAM, headers=_STREAMED),),
    query=ProgressQuery,
    headers=_RESUMED,
    refusals=(404, 410, 429, 503),
    ticket=True,
)
_EXECUTE = Operation(
    "progress",
    (Reply(200, "Its progress.", media=EVENT_STREAM, headers={**_STREAMED, **REPLAYED, **RATE_LIMITS, **caching.TOLD}),),
    query=ProgressOptions,
    body=ExecuteBody,
    headers={**SENT, **caching.SENT},
    refusals=(404, 409, 429, 503),
)
_MULTI = Operation(
    "progress",
    (Reply(200, "The events of all.", media=EVENT_STREAM),),
    query=MultiQuery,
    headers={"Last-Event-ID": "The `id` of the last event received: where to begin in each task. Wins over `last_event_id`."},
    refusals=(404, 410, 429, 503),
)


class ProgressRoutes:
    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        drain: Drain,
        departures: Departures,
        metrics: GatewayMetrics,
        new_session_id: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._drain = drain
        self._departures = departures
        self._metrics = metrics
        self._new_session_id = new_session_id
        self._max_body_bytes = int(settings.server.max_body_bytes)
        self._stall_timeout_s = settings.streams.stall_timeout_s

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/api/v1/stream/progress", Access.STREAM, self.stream_progress, _PROGRESS),
            Route("POST", "/api/v1/execute", Access.WRITE, self.execute, _EXECUTE),
            Route("GET", "/api/v1/stream/multi", Access.READ, self.stream_multi, _MULTI),
        ]

    async def stream_progress(self, request: web.Request) -> web.StreamResponse:
        """Watch a task's progress.

        One event for each step that begins or ends, from the beginning or from a position, then live, to `done`.
        """
        query = parse_query(ProgressQuery, request.query)
        after = _position(request, query.last_event_id)
        if not is_run_id(query.workflow_id):
            raise RunNotFound
        only_run(request, query.workflow_id)
        with self._drain.answer():
            run = await self._engine.get(request[PRINCIPAL], query.workflow_id)
            about_run(request, run.id)
            await self._check(request[PRINCIPAL], run.id, after)
            return await self._watch(request, run, query, after)

    async def execute(self, request: web.Request) -> web.StreamResponse:
        """Start a plan and watch its progress.

        A plan of the configuration by its name, or one that comes with the request. The task goes on whatever becomes of this
        connection; `GET /api/v1/stream/progress` continues the stream.
        """
        principal = request[PRINCIPAL]
        options = parse_query(ProgressOptions, request.query)
        body = await asked(request, ExecuteBody, max_bytes=self._max_body_bytes)
        begun = execution(body, body.session_id or self._new_session_id())
        if begun.plan is not None:
            allow(principal, Scope.RUNS_EXECUTE_INLINE)
        begun = msgspec.structs.replace(
            begun, idempotency=idempotency(request.headers, principal, body.model_dump()), cache=cache_use(request.headers)
        )
        with self._drain.answer(), _in_the_words_of_the_body():
            entry = None if begun.plan is not None else self._engine.resolve(begun.model).entry
            async with self._departures.requester(principal, begun, "continue") as run:
                found = None if entry is None else cache_found(entry, run)
                about_run(request, run.id, repeated=run.repeated, quota=run.quota, cache=found)
                return await self._watch(request, run, options, BEGINNING, answers=not run.repeated)

    async def stream_multi(self, request: web.Request) -> web.StreamResponse:
        """Watch several tasks in one stream.

        Every event says whose it is, and its `id` is the position in all of them.
        """
        principal, query = request[PRINCIPAL], parse_query(MultiQuery, request.query)
        names = list(dict.fromkeys(query.workflow_ids.split(",")))
        if len(names) > MAX_RUNS:
            raise InvalidRequest(f"One stream can show {MAX_RUNS} tasks.", param="workflow_ids")
        positions = parse_cursor(_cursor(request, query.last_event_id), len(names))
        if not all(map(is_run_id, names)):
            raise RunNotFound
        with self._drain.answer(), counted(self._metrics):
            async with self._merged(principal, names, positions, query) as merged:
                sink = self._sink(request, query)
                await sink.start()
                await self._pump(query).run(merged, merged, sink, principal)
        return sink.response

    async def _check(self, principal: Principal, run_id: str, after: Position) -> None:
        """What is folded from the beginning has to find out by itself whether a position is one. Raises StreamGap."""
        if after.seq == 0:
            return
        page = await self._engine.history(principal, run_id, after_seq=after.seq - 1, limit=1)
        if not page.entries or page.entries[0].seq != after.seq or after.ms not in (None, page.entries[0].ms):
            raise StreamGap

    async def _watch(
        self, request: web.Request, run: Run, options: ProgressOptions, after: Position, *, answers: bool = False
    ) -> web.StreamResponse:
        """Folded from the log's beginning: what a step brought is told with its end, wherever the reader begins."""
        encoder = ProgressEncoder(run, after, step_logs=options.enable_step_logs, quiet=not options.enable_progress)
        async with self._engine.subscribe(request[PRINCIPAL], run.id, answers=answers) as subscription:
            sink = self._sink(request, options)
            with counted(self._metrics), self._departures.reader(run.id):
                await sink.start()
                await self._pump(options).run(subscription, encoder, sink, request[PRINCIPAL])
        return sink.response

    @asynccontextmanager
    async def _merged(
        self, principal: Principal, names: Sequence[str], positions: Sequence[Position], query: MultiQuery
    ) -> AsyncIterator[Merged]:
        async with AsyncExitStack() as stack:
            strands = []
            for name, position in zip(names, positions, strict=True):
                run = await self._engine.get(principal, name)
                subscription: Subscription
                if query.format == "progress":
                    await self._check(principal, name, position)
                    subscription = await stack.enter_async_context(self._engine.subscribe(principal, name))
                    shown, hidden = _progress(run, query), position.seq
                else:
                    subscription = await stack.enter_async_context(self._engine.subscribe(principal, name, position))
                    shown, hidden = _events(run, query), 0
                stack.enter_context(self._departures.reader(name))
                strands.append(Strand(name, subscription, shown, position, hidden))
            merged = Merged(strands)
            stack.push_async_callback(merged.close)
            yield merged

    def _pump(self, options: ProgressOptions) -> Pump:
        return Pump(Pace(hold_s=0, keepalive_s=options.keep_alive), monotonic, self._drain)

    def _sink(self, request: web.Request, options: ProgressOptions) -> EventStreamSink:
        if options.compress is None:
            return EventStreamSink(request, stall_timeout_s=self._stall_timeout_s, headers=_HEADERS)
        return CompressedSink(request, options.compress, stall_timeout_s=self._stall_timeout_s, headers=_HEADERS)


@contextmanager
def _in_the_words_of_the_body() -> Iterator[None]:
    """A mistake in a plan is told with its path from the plan's root, which in the body is the list of its steps."""
    try:
        yield
    except InvalidRequest as error:
        if error.code != "invalid_plan":
            raise
        _, _, inside = (error.param or "").partition(".")
        param = f"workflow.{inside or 'steps'}"
        message = error.message.removeprefix(f"{error.param}: ")
        raise InvalidRequest(f"{param}: {message}", code=error.code, param=param) from None


def _position(request: web.Request, queried: str) -> Position:
    return parse_position(_cursor(request, queried))


def _cursor(request: web.Request, queried: str) -> str:
    header = request.headers.getall("Last-Event-ID", [])
    if len(header) > 1:
        raise InvalidPosition("A position may be given only once.")
    return header[0] if header and header[0] else queried


def _progress(run: Run, query: MultiQuery) -> Shown:
    fold = ProgressFold(run, step_logs=query.enable_step_logs)

    def shown(entry: Entry) -> Iterator[tuple[str, bytes]]:
        for told in fold.fold(entry):
            if query.enable_progress or told["step_type"] == "":
                yield "progress", _encode(told)

    return shown


def _events(run: Run, query: MultiQuery) -> Shown:
    always = ENDINGS | {EventType.STREAM_END}

    def shown(entry: Entry) -> Iterator[tuple[str, bytes]]:
        kind = entry.event.type
        if not query.types or kind in query.types or kind in always:
            name = kind if kind == EventType.STREAM_END else SSE_NAMES.get(kind, kind)
            yield name, entry.envelope(run.id)

    return shown
