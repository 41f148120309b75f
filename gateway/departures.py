"""What becomes of a run when the client that asked for it leaves.

Only the requester's leaving counts; a reader who resumed a stream comes and goes without effect. The policy is the request's own
or the model's: `cancel`, `continue`, or a number of seconds after which the run is cancelled unless somebody has come back for
it in this process by then. A run with an idempotency key may have several requesters: while anybody in this process reads it,
the leaving of another cancels nothing.

A client whose key is revoked or expires while it is being answered is told so, cannot come back with it, and counts as one that
leaves.

A cancellation, once due, is carried out even if the server shuts down meanwhile; a grace period that a shutdown cuts short leaves
the run to go on, because its client may be about to resume it elsewhere.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal, Self

from gateway.observe import logs
from gateway.observe.metrics import GatewayMetrics
from gateway.transports.drain import Drain
from orchestrator.engine import DEPARTED, Engine, Submission
from orchestrator.errors import HeadgateError, RunFailed, Unavailable
from orchestrator.runs import Principal, Run

log = logs.logger(__name__)

Policy = Literal["cancel", "continue"] | float
"""What leaving does: a number is the seconds after which the run is cancelled."""

_RETRY_S = (0.2, 1.0, 5.0)


class Departures:
    """Owned by the app: entering it starts nothing, leaving it waits for the cancellations that are under way."""

    def __init__(self, engine: Engine, drain: Drain, metrics: GatewayMetrics) -> None:
        self._engine = engine
        self._drain = drain
        self._metrics = metrics
        self._tasks: set[asyncio.Task[Any]] = set()
        self._graces: dict[str, asyncio.Event] = {}
        self._readers: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for returned in self._graces.values():
            returned.set()
        while self._tasks:
            await asyncio.wait(self._tasks)

    @asynccontextmanager
    async def requester(self, principal: Principal, submission: Submission, policy: Policy) -> AsyncIterator[Run]:
        """A run, submitted on behalf of a client whose answer is given inside. Breaking off there is a departure, and so is an
        error that answers in the run's stead: its client will ask anew.

        The submission itself is never broken off halfway: a client that leaves during it leaves a run behind.
        """
        submitting = self._own(self._engine.submit(principal, submission))
        shared = submission.idempotency is not None
        try:
            run = await asyncio.shield(submitting)
            with self.reader(run.id) if shared else nullcontext():
                yield run
        except RunFailed:
            raise
        except BaseException as why:
            if submitting.done() and (submitting.cancelled() or submitting.exception() is not None):
                raise  # there is no run
            gone = isinstance(why, (asyncio.CancelledError, ConnectionError))
            if gone:
                self._metrics.departure()
            if not (gone and self._drain.closing):
                self._own(self._leave(submitting, principal, policy, shared))
            raise

    def leave(self, principal: Principal, run: Run, policy: Policy, *, shared: bool) -> None:
        """After an answer that came to an end, though not to the run's: its client counts as one that left. `shared`: others
        may have asked for the run as well."""
        self._own(self._depart(run, principal, policy, shared))

    @contextmanager
    def reader(self, run_id: str) -> Iterator[None]:
        """Around a resumed stream, or one that several may have asked for.

        A grace period that runs for the run is over, and one that begins meanwhile is met at once.
        """
        self._readers[run_id] += 1
        if returned := self._graces.get(run_id):
            returned.set()
        try:
            yield
        finally:
            self._readers[run_id] -= 1
            if not self._readers[run_id]:
                del self._readers[run_id]

    def _own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _leave(self, submitting: asyncio.Task[Run], principal: Principal, policy: Policy, shared: bool) -> None:
        try:
            run = await submitting
        except HeadgateError as error:
            log.info("departure_without_effect", code=error.code)  # there is no run, and nobody left to tell
        except Exception:
            log.exception("departure_failed")
            self._metrics.internal_error()
        else:
            await self._depart(run, principal, policy, shared)

    async def _depart(self, run: Run, principal: Principal, policy: Policy, shared: bool) -> None:
        try:
            if shared and run.id in self._readers:
                return
            if policy == "continue" or (not isinstance(policy, str) and await self._returned(run.id, policy)):
                return
            await self._cancel(principal, run.id)
        except HeadgateError as error:
            log.info("departure_without_effect", code=error.code)  # there is no run any more, and nobody left to tell
        except Exception:
            log.exception("departure_failed")
            self._metrics.internal_error()

    async def _returned(self, run_id: str, grace_s: float) -> bool:
        if run_id in self._readers:
            return True
        returned = self._graces[run_id] = asyncio.Event()
        try:
            async with asyncio.timeout(grace_s):
                return await returned.wait()
        except TimeoutError:
            return False
        finally:
            del self._graces[run_id]

    async def _cancel(self, principal: Principal, run_id: str) -> None:
        for pause_s in (*_RETRY_S, None):
            try:
                await self._engine.cancel(principal, run_id, DEPARTED)
            except Unavailable as error:
                if pause_s is None:
                    log.warning("departure_not_cancelled", workflow_id=run_id, code=error.code)
                    return
                await asyncio.sleep(pause_s)
            else:
                return
