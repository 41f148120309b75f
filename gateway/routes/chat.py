"""`/v1/chat/completions`: ask, resume, cancel.

The requester's leaving has consequences (`gateway.departures`); a reader who resumes a stream comes and goes freely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic, time

import msgspec
from aiohttp import web

from gateway.access import caching
from gateway.access.caching import cache_found, cache_use
from gateway.access.idempotency import REPLAYED, SENT, idempotency
from gateway.access.rules import Access
from gateway.departures import Departures, Policy
from gateway.edge import PRINCIPAL, about_run
from gateway.errors import AccessEnded, RunInProgress
from gateway.observe.metrics import GatewayMetrics
from gateway.routes.resume import asks_for_stream, resume_point
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.transports.body import read_json_body
from gateway.transports.drain import Drain
from gateway.transports.pump import Pace, Pump, gather
from gateway.transports.sink import ClientStalled, EventStreamSink
from gateway.turns import Turns
from gateway.wire import served
from gateway.wire.chat import ChatEncoder
from gateway.wire.chat_approval import Decided, decided
from gateway.wire.chat_chunk import completion_of
from gateway.wire.chat_request import ChatBody, ChatRequest, parse_chat_request
from gateway.wire.completion import CompletionFold
from gateway.wire.openai_models import Completion, CompletionCancelled, RetrieveQuery
from gateway.wire.operation import EVENT_STREAM, Operation, Reply
from gateway.wire.rate_limits import RATE_LIMITS
from orchestrator.engine import Engine, Subscription
from orchestrator.errors import HeadgateError, ModelNotFound, RunNotFound
from orchestrator.events import Entry, Gap
from orchestrator.runs import Principal, Run, is_run_id

_BODY_TIMEOUT_S = 60.0

_PATH = {"id": "`chatcmpl-…`, or the task's id."}
_NAMES = {"X-Workflow-ID": "The run behind the answer: `task-…`."}
_WHOLE = Reply(200, "The answer, whole or as a stream.", Completion, headers={**_NAMES, **served.TOLD}, also=EVENT_STREAM)
_CREATE = Operation(
    "chat",
    (_WHOLE._replace(headers={**_NAMES, **served.TOLD, **REPLAYED, **caching.TOLD, **RATE_LIMITS}),),
    body=ChatBody,
    headers={
        "X-Headgate-Stream-Ids": "`true`: chunks carry the positions of their events as `id:` lines.",
        "X-Session-ID": "The session that the run belongs to; `headgate_options.session_id` wins.",
        **SENT,
        **caching.SENT,
    },
    refusals=(404, 409, 429, 502, 503, 504),
)
_RETRIEVE = Operation(
    "chat",
    (_WHOLE,),
    query=RetrieveQuery,
    path=_PATH,
    headers={"Last-Event-ID": "The position after which the stream goes on. Wins over `starting_after`."},
    refusals=(409, 410, 429, 503),
)
_CANCEL = Operation("chat", (Reply(200, "It was asked.", CompletionCancelled),), path=_PATH, refusals=(409,))


class ChatRoutes:
    def __init__(self, settings: Settings, engine: Engine, drain: Drain, departures: Departures, metrics: GatewayMetrics) -> None:
        self._engine = engine
        self._drain = drain
        self._departures = departures
        self._turns = Turns(engine)
        self._metrics = metrics
        self._max_body_bytes = int(settings.server.max_body_bytes)
        self._stall_timeout_s = settings.streams.stall_timeout_s
        self._sdk_retries = settings.runs.sdk_retries
        pace = Pace(hold_s=settings.streams.hold_s, keepalive_s=settings.streams.keepalive_s)
        self._live = Pump(pace, monotonic, drain, written=_age_observer(metrics.chunk_age, time))
        self._resumed = Pump(pace, monotonic, drain)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/v1/chat/completions", Access.WRITE, self.create, _CREATE),
            Route("GET", "/v1/chat/completions/{id:[^/]+}", Access.READ, self.retrieve, _RETRIEVE),
            Route("POST", "/v1/chat/completions/{id:[^/]+}/cancel", Access.WRITE, self.cancel, _CANCEL),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Ask a model.

        The answer is a stream of chunks (`stream: true`) or one JSON object; a failure before the first output is an HTTP error
        either way. A client that leaves cancels the run, unless the model or `headgate_options.on_disconnect` says otherwise, or
        another request with its `Idempotency-Key` is being answered.
        """
        principal = request[PRINCIPAL]
        body = await read_json_body(request, max_bytes=self._max_body_bytes, timeout_s=_BODY_TIMEOUT_S)
        asked = parse_chat_request(
            body,
            stream_ids=request.headers.get("X-Headgate-Stream-Ids") == "true",
            session_id=request.headers.get("X-Session-ID"),
        )
        if (said := decided(asked.submission.body["messages"])) is not None:
            return await self._go_on(request, asked, said)
        repetition = idempotency(request.headers, principal, asked, sdk_retries=self._sdk_retries)
        submission = msgspec.structs.replace(asked.submission, idempotency=repetition, cache=cache_use(request.headers))
        entry = self._engine.resolve(submission.model).entry
        policy = entry.on_disconnect if asked.on_disconnect is None else asked.on_disconnect
        with self._drain.answer():
            async with self._departures.requester(principal, submission, policy) as run:
                about_run(request, run.id, repeated=run.repeated, cache=cache_found(entry, run), quota=run.quota)
                async with self._engine.subscribe(principal, run.id, answers=not run.repeated) as subscription:
                    if not asked.stream:
                        return await self._whole(subscription, run, request[PRINCIPAL])
                    pump = self._resumed if run.repeated else self._live  # what is replayed says nothing of how fast we are
                    response, broken = await self._stream(pump, request, subscription, ChatEncoder(run))
            if isinstance(broken, AccessEnded):
                self._departures.leave(principal, run, policy, shared=repetition is not None)
            return response

    async def _go_on(self, request: web.Request, asked: ChatRequest, said: Decided) -> web.StreamResponse:
        """The next turn of a run that waits for the decision which the conversation ends with."""
        principal, approval = request[PRINCIPAL], said.decision.approval_id
        await self._turns.decide(principal, said)
        run = await self._engine.get(principal, said.run_id)
        about_run(request, run.id)
        policy = self._policy(run.model) if asked.on_disconnect is None else asked.on_disconnect
        run = msgspec.structs.replace(run, options=asked.submission.options)
        with self._drain.answer(), self._departures.reader(run.id):
            try:
                async with self._engine.subscribe(principal, run.id, answers=True) as subscription:
                    if not asked.stream:
                        return await self._whole(subscription, run, principal, approval)
                    encoder = ChatEncoder(run, turn_after=approval)
                    response, broken = await self._stream(self._resumed, request, subscription, encoder)
            except (asyncio.CancelledError, ConnectionError):
                self._departures.leave(principal, run, policy, shared=True)
                raise
            if isinstance(broken, AccessEnded):
                self._departures.leave(principal, run, policy, shared=True)
            return response

    def _policy(self, model: str) -> Policy:
        """What leaving does. The model may have gone since the run began."""
        try:
            return self._engine.resolve(model).entry.on_disconnect
        except ModelNotFound:
            return "cancel"

    async def retrieve(self, request: web.Request) -> web.StreamResponse:
        """Read a completion again, or go on reading.

        The completion of a run that has ended, as JSON; or its stream, from the start or from where the client left off, in the
        very bytes of the first time.
        """
        run, turn_after = await self._find(request)
        streamed = asks_for_stream(request)
        if not streamed and not await self._turns.over(request[PRINCIPAL], run, turn_after):
            raise RunInProgress
        point = resume_point(request)
        with self._drain.answer(), self._departures.reader(run.id):
            async with self._engine.subscribe(request[PRINCIPAL], run.id) as subscription:
                if not streamed:
                    return await self._whole(subscription, run, request[PRINCIPAL], turn_after)
                encoder = ChatEncoder(run, turn_after=turn_after, skip_chunks=point.chunks, after=point.after)
                response, _ = await self._stream(self._resumed, request, subscription, encoder)
                return response

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a completion.

        Its readers learn in-band when it has stopped.
        """
        run, _ = await self._find(request)
        run = await self._engine.cancel(request[PRINCIPAL], run.id)
        answer = {"id": request.match_info["id"], "object": "chat.completion", "status": run.state.value.lower()}
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _find(self, request: web.Request) -> tuple[Run, str | None]:
        """The run behind `chatcmpl-…` or `task-…`, and which of its turns. What cannot be an id is answered like one that does
        not exist."""
        run_id, turn_after = completion_of(request.match_info["id"])
        if not is_run_id(run_id):
            raise RunNotFound
        run = await self._turns.find(request[PRINCIPAL], run_id, turn_after)
        about_run(request, run.id)
        return run, turn_after

    async def _stream(
        self, pump: Pump, request: web.Request, subscription: Subscription, encoder: ChatEncoder
    ) -> tuple[web.StreamResponse, HeadgateError | None]:
        """The answer, and what broke it off."""
        sink = EventStreamSink(request, stall_timeout_s=self._stall_timeout_s, more=encoder.headers)
        self._metrics.stream_opened()
        try:
            broken = await pump.run(subscription, encoder, sink, request[PRINCIPAL])
        except ClientStalled:
            self._metrics.stalled()
            raise
        finally:
            self._metrics.stream_closed()
        return sink.response, broken

    async def _whole(
        self, subscription: Subscription, run: Run, bearer: Principal, turn_after: str | None = None
    ) -> web.Response:
        fold = CompletionFold(run, turn_after)
        async with self._drain.until_closed(bearer):
            await gather(subscription, fold)
        return web.Response(body=fold.body(), content_type="application/json", headers=fold.headers())


def _age_observer(observe: Callable[[float], None], clock: Callable[[], float]) -> Callable[[Sequence[Entry | Gap]], None]:
    """How old the oldest event of each write was when it was written, from the log's clock to ours."""

    def written(items: Sequence[Entry | Gap]) -> None:
        if isinstance(oldest := items[0], Entry):
            observe(max(clock() - oldest.ms / 1000, 0.0))

    return written
