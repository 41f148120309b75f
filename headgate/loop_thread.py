"""An event loop in a thread of its own, for callers who have none: they wait while it works."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Starts at once, and ends when it is closed, when nobody holds it any more, or when the interpreter exits.

    `farewell` is awaited in the loop before it ends; it must not hold this object.
    """

    def __init__(self, farewell: Callable[[], Awaitable[None]]) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        # A daemon: what ends it is called at exit, and an exit that goes wrong must not hang.
        thread = threading.Thread(target=_work, args=(started, farewell), name="headgate-client", daemon=True)
        thread.start()
        self._loop, stop = started.result()
        self._end = weakref.finalize(self, _end, self._loop, stop, thread)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises. A caller who is interrupted while waiting cancels it."""
        if not self._end.alive:
            work.close()
            raise RuntimeError("This client is closed.")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Wait until it has ended. Twice is once."""
        self._end()


def _work(started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]], farewell: Callable[[], Awaitable[None]]) -> None:
    async def until_stopped() -> None:
        stop = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        await farewell()

    with asyncio.Runner() as runner:
        runner.run(until_stopped())


def _end(loop: asyncio.AbstractEventLoop, stop: asyncio.Event, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(stop.set)
    if threading.current_thread() is not thread:  # the collector may come by in any thread
        thread.join()
