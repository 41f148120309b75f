"""`/api/v1/tasks/{id}/cancel`, `/pause`, `/resume`, `/control-state`: what can be asked of a task that goes on.

An acceptance says that it was asked; the task's events, and its control state, say when it has happened.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from gateway.access.rules import Access
from gateway.edge import PRINCIPAL, about_run
from gateway.routes.native import answer, asked, run_id
from gateway.routes.route import Route
from gateway.settings import Settings
from gateway.wire.operation import Operation, Reply
from gateway.wire.rest import control
from gateway.wire.rest_models import Accepted, Control
from gateway.wire.task_bodies import ReasonBody
from orchestrator.engine import Engine
from orchestrator.runs import Principal, Run

_CONTROL = Operation("tasks", (Reply(202, "It was asked.", Accepted),), body=ReasonBody, body_required=False, refusals=(409, 503))
_STATE = Operation("tasks", (Reply(200, "The state.", Control),))

Ask = Callable[[Principal, str, str | None], Awaitable[Run]]


class TaskControlRoutes:
    def __init__(self, settings: Settings, engine: Engine) -> None:
        self._engine = engine
        self._max_body_bytes = int(settings.server.max_body_bytes)

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/api/v1/tasks/{id:[^/]+}/cancel", Access.WRITE, self.cancel, _CONTROL),
            Route("POST", "/api/v1/tasks/{id:[^/]+}/pause", Access.WRITE, self.pause, _CONTROL),
            Route("POST", "/api/v1/tasks/{id:[^/]+}/resume", Access.WRITE, self.resume, _CONTROL),
            Route("GET", "/api/v1/tasks/{id:[^/]+}/control-state", Access.READ, self.state, _STATE),
        ]

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a task.

        Its model's connection is closed and its events end with `WORKFLOW_CANCELLED`. Cancelling twice is cancelling once; a
        task that has ended in another way is a 409 that says how.
        """
        return await self._ask(request, self._engine.cancel, "The task is being cancelled.", "The task has been cancelled.")

    async def pause(self, request: web.Request) -> web.Response:
        """Pause a task.

        It stands still at its next safe point, between two steps; its state is PAUSED from then on. 409 if it is paused already,
        or has ended.
        """
        return await self._ask(request, self._engine.pause, "The task will pause at its next safe point.")

    async def resume(self, request: web.Request) -> web.Response:
        """Let a paused task go on.

        Or take back a pause that has not happened yet. 409 if nobody paused it.
        """
        return await self._ask(request, self._engine.resume, "The task goes on.")

    async def state(self, request: web.Request) -> web.Response:
        """Look at what was asked of a task, by whom and why."""
        named = run_id(request)
        state = await self._engine.control_state(request[PRINCIPAL], named)
        about_run(request, named)
        return answer(control(state))

    async def _ask(self, request: web.Request, ask: Ask, message: str, done: str | None = None) -> web.Response:
        named = run_id(request)
        wanted = await asked(request, ReasonBody, max_bytes=self._max_body_bytes, required=False)
        run = await ask(request[PRINCIPAL], named, wanted.reason)
        about_run(request, run.id)
        said = done if done is not None and run.state.ended else message
        return answer(Accepted(success=True, message=said, task_id=run.id), status=202)
