"""Carrying out the calls of a turn: those that the log has no result of, at once, each told in the log before and after.

A call is begun in the log before it is made, so one that was lost with its process is known. It is made again, unless its tool
says that this must not be: then the model is told that nobody knows what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from orchestrator.agents.turn import ToolCall, Turn
from orchestrator.agents.voice import Voice
from orchestrator.clock import Clock
from orchestrator.events import EventType
from orchestrator.metrics import Metrics
from orchestrator.tools.redaction import Redactor
from orchestrator.tools.schema import decoded
from orchestrator.tools.tool import CallFailed, CallInterrupted, InvalidArguments, Tool
from orchestrator.tools.toolbox import Toolbox

AT_ONCE = 8
"""Calls of one agent that run at a time."""

MAX_CALLS = 128
"""Calls of one turn that are made, as many as a request may offer tools. A model that wants more is told so."""

_LOST = "The call was interrupted. Whether it took effect is not known, and it was not repeated."
_SECRET = "The call was interrupted, and its arguments were not kept because there is a secret in them."


class TooManyCalls(CallFailed):
    """Too many calls at once. This one was not made; make fewer at a time."""

    code = "too_many_calls"


class ToolWork:
    """One agent's."""

    def __init__(self, toolbox: Toolbox, voice: Voice, redactor: Redactor, metrics: Metrics, clock: Clock) -> None:
        self._toolbox = toolbox
        self._voice = voice
        self._redactor = redactor
        self._metrics = metrics
        self._clock = clock
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: dict[str, ToolCall] = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    @property
    def repeatable(self) -> bool:
        """Whether all calls that run can be broken off and made again later."""
        return all(self._toolbox.find(call.name).idempotent for call in self._running.values())

    async def finish(self, turn: Turn) -> None:
        """Get a result for each call. When cancelled, what runs is told to stop."""
        for call in turn.calls[MAX_CALLS:]:
            if call.id not in turn.results:
                turn.results[call.id] = self._say_error(call, TooManyCalls())
        await _all([self._one(call, turn) for call in turn.open])

    def drop(self) -> None:
        """Say of the calls that were running what became of them: nothing follows that could need their results."""
        for call in self._running.values():
            self._say_error(call, CallFailed("The call was given up, because the run ended.", code="cancelled"))
        self._running.clear()

    def refuse(self, calls: Sequence[ToolCall]) -> None:
        """Say that these were not made: the answer ended with them."""
        for call in calls:
            self._say_error(call, CallFailed("The call was not made, because the answer ended.", code="not_called"))

    async def _one(self, call: ToolCall, turn: Turn) -> None:
        async with self._slots:
            begun_at = self._clock.time()
            try:
                tool = self._toolbox.find(call.name)
                arguments = _arguments(call, turn, tool)
                tool.schema.check(arguments)
                params = self._redactor.value(arguments)
                invoked = {"tool": call.name, "call_id": call.id, "params": params}
                self._running[call.id] = call
                self._voice.say(EventType.TOOL_INVOKED, payload=invoked)
                await self._voice.writer.flush()
                seen = await self._toolbox.call(call.name, arguments)
            except CallFailed as error:
                turn.results[call.id] = self._say_error(call, error, self._clock.time() - begun_at)
            else:
                text = turn.results[call.id] = self._redactor.text(seen.text)
                duration_s = self._clock.time() - begun_at
                payload = {
                    "tool": call.name,
                    "call_id": call.id,
                    "success": seen.success,
                    "duration_ms": round(duration_s * 1000),
                }
                self._voice.say(EventType.TOOL_OBSERVATION, message=text, payload=payload)
                self._metrics.tool_called("success" if seen.success else "failure", duration_s)
            self._running.pop(call.id, None)

    def _say_error(self, call: ToolCall, error: CallFailed, duration_s: float | None = None) -> str:
        text = self._redactor.text(error.message)
        payload: dict[str, Any] = {"tool": call.name, "call_id": call.id, "code": error.code}
        if duration_s is not None:
            payload["duration_ms"] = round(duration_s * 1000)
            self._metrics.tool_called(error.code, duration_s)
        self._voice.say(EventType.TOOL_ERROR, message=text, payload=payload)
        return text


def _arguments(call: ToolCall, turn: Turn, tool: Tool) -> dict[str, Any]:
    """What to call it with. Raises InvalidArguments, and CallInterrupted for a call that cannot or must not be made again."""
    if call.invalid is not None:
        raise InvalidArguments(call.invalid)
    if call.id in turn.invoked and not tool.idempotent:
        raise CallInterrupted(_LOST)
    if call.redacted:
        raise CallInterrupted(_SECRET)
    return decoded(call.arguments)


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """All of it at once. The first failure, and being cancelled, cancels the rest and waits for it."""
    tasks = [asyncio.ensure_future(part) for part in work]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
