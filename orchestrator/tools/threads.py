"""Threads for functions that block. One that never comes back is abandoned, and keeps nobody else from working.

A pool would do neither: its threads are used up by functions that hang, and the process waits for them at its end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import NoReturn, TypeVar

from orchestrator.tools.tool import ToolUnavailable

_log = logging.getLogger(__name__)

MOST = 64

_T = TypeVar("_T")


class Threads:
    """A thread per call, at most so many at a time, those included that were given up and still run."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._running = 0

    @property
    def running(self) -> int:
        return self._running

    async def run(self, name: str, work: Callable[[], _T]) -> _T:
        """The function's result, or what it raised. When cancelled, the thread goes on alone and what it returns is ignored."""
        if self._running >= self._most:
            raise ToolUnavailable(f"{self._running} calls of functions still run, and no more are started.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Callable[[], _T]] = loop.create_future()
        context = copy_context()

        def settle(outcome: Callable[[], _T]) -> None:
            self._running -= 1
            if not done.done():
                done.set_result(outcome)

        def body() -> None:
            outcome = _outcome(lambda: context.run(work))
            try:
                loop.call_soon_threadsafe(settle, outcome)
            except RuntimeError:  # the loop is closed, and with it went whoever was waiting
                return

        threading.Thread(target=body, name=f"tool {name}", daemon=True).start()
        self._running += 1  # it settles in this loop, so later; one that cannot be started is none that runs
        try:
            return (await done)()
        except asyncio.CancelledError:
            if not done.done() or done.cancelled():
                _log.warning("a call of the function behind the tool %s was given up; its thread goes on alone", name)
            raise


def _outcome(work: Callable[[], _T]) -> Callable[[], _T]:
    """What happened, to be had again in another thread."""
    try:
        value = work()
    except BaseException as error:  # noqa: BLE001 - a thread's outermost edge; whoever waits is told
        return _raising(error)
    return lambda: value


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def again() -> NoReturn:
        if isinstance(error, Exception):
            raise error
        raise RuntimeError(f"The function raised {type(error).__name__}.") from error

    return again
