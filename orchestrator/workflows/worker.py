"""The connection to Temporal: a client, the worker of this process, and starting runs. Reconnects by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode, TLSConfig
from temporalio.worker import PollerBehaviorAutoscaling, UnsandboxedWorkflowRunner, Worker, WorkflowRunner

from orchestrator.engine import TimelineEvent
from orchestrator.errors import RunConflict, Unavailable
from orchestrator.foreign import workflow_input
from orchestrator.plans.plan import Plan
from orchestrator.runs import Run, RunRequest
from orchestrator.workflows.activities import Activities
from orchestrator.workflows.foreign_workflow import FOREIGN_WORKFLOW, ForeignInput, ForeignWorkflow, watcher_id
from orchestrator.workflows.messages import LONG_HISTORY, RunInput
from orchestrator.workflows.run_workflow import WORKFLOW, RunWorkflow
from orchestrator.workflows.timeline import timeline

_log = logging.getLogger(__name__)

_DECISION_S = 2.0
"""How long a process may keep a workflow waiting for a decision, which takes milliseconds, before another one is asked. It is
part of the pause when a process is lost between two steps; Temporal's default is 10 s, for both time-outs that it is used for."""

_AGENT_POLLS = PollerBehaviorAutoscaling(initial=1)
"""Nearly all agents start eagerly, without being polled for; what comes by polls is take-overs. A process that is frozen, or cut
off from Temporal, leaves its open polls behind, and each swallows one attempt for the length of a heartbeat: so one poll, and
more only while there is a backlog."""

_CONNECT_S = 5.0
_RESTART_S = 5.0

_Answer = TypeVar("_Answer")


class TemporalUnavailable(Unavailable):
    """The workflow engine is temporarily unavailable, so durable runs cannot be started. Try again shortly."""

    code = "backend_unavailable"


class TemporalAddress(msgspec.Struct, frozen=True):
    """Where Temporal is. `api_key` and `tls` as Temporal Cloud wants them."""

    target: str
    namespace: str = "default"
    tls: bool = False
    api_key: str | None = None


class Execution(StrEnum):
    """What Temporal knows of a run's workflow."""

    RUNNING = "running"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    COMPLETED = "completed"
    MISSING = "missing"


_CLOSED = {
    WorkflowExecutionStatus.FAILED: Execution.FAILED,
    WorkflowExecutionStatus.TERMINATED: Execution.FAILED,
    WorkflowExecutionStatus.COMPLETED: Execution.COMPLETED,
    WorkflowExecutionStatus.CANCELED: Execution.CANCELLED,
    WorkflowExecutionStatus.TIMED_OUT: Execution.TIMED_OUT,
}


class Temporal:
    """`call_timeout_s` bounds every call, so that a door learns in time that Temporal is away. `long_history` is after how many
    events a run's workflow is continued as another."""

    def __init__(
        self,
        address: TemporalAddress,
        activities: Activities,
        *,
        task_queue: str,
        heartbeat_s: float,
        max_agents: int,
        drain_s: float,
        call_timeout_s: float = 1.5,
        long_history: int = LONG_HISTORY,
    ) -> None:
        self._address = address
        self._activities = activities
        self._task_queue = task_queue
        self._heartbeat_s = heartbeat_s
        self._max_agents = max_agents
        self._drain_s = drain_s
        self._long_history = long_history
        self._timeout = timedelta(seconds=call_timeout_s)
        self._client: Client | None = None

    @asynccontextmanager
    async def working(self, first_wait_s: float = 10.0) -> AsyncIterator[None]:
        """Connect and work until left. Temporal being away delays this by `first_wait_s` and then goes on in the background."""
        connected = asyncio.Event()
        stopping = asyncio.Event()
        task = asyncio.create_task(self._work(connected, stopping), name="temporal worker")
        try:
            try:
                async with asyncio.timeout(first_wait_s):
                    await connected.wait()
            except TimeoutError:
                _log.warning("Temporal at %s does not answer; durable runs are refused until it does", self._address.target)
            yield
        finally:
            stopping.set()
            if not connected.is_set():
                task.cancel()  # it is connecting, which takes as long as it takes
            await asyncio.wait([task], timeout=self._drain_s + 10.0)
            task.cancel()
            await asyncio.wait([task])

    async def start(self, run: Run, request: RunRequest, generation: int = 0) -> None:
        """Start the run's workflow, eagerly in this process if it can be. Raises TemporalUnavailable."""
        if request.workflow is None:
            outline = Plan.model_validate(request.plan).outline()
            job = RunInput(run.id, outline, self._heartbeat_s, generation, run.deadline_ms, long_history=self._long_history)
            await self._start(WORKFLOW, job, run.id)
            return
        target = request.workflow
        argument = workflow_input(run, request, target["input"])
        watch = ForeignInput(run.id, target["type"], target["task_queue"], target["timeout_s"], argument)
        await self._start(FOREIGN_WORKFLOW, watch, watcher_id(run.id))

    async def cancel(self, run: Run, reason: str | None) -> None:
        """Ask the run's workflow to stop; one that is closed or unknown needs nothing. Raises TemporalUnavailable."""
        try:
            await self._bounded(self._handle(run).cancel(reason=reason or "", rpc_timeout=self._timeout))
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise TemporalUnavailable(retry_after_s=2.0) from error

    async def signal(self, run_id: str, name: str, args: Sequence[Any]) -> None:
        """Signal the run's workflow. Raises TemporalUnavailable; RunConflict if it is closed or unknown."""
        try:
            handle = self._connected().get_workflow_handle(run_id)
            await self._bounded(handle.signal(name, args=args, rpc_timeout=self._timeout))
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise RunConflict("The run's workflow has ended.", code="run_ended") from error
            raise TemporalUnavailable(retry_after_s=2.0) from error

    async def timeline(self, run_id: str, *, full: bool) -> Sequence[TimelineEvent]:
        """What Temporal did for the run, in words. Empty if it knows nothing of it. Raises TemporalUnavailable."""
        try:
            handle = self._connected().get_workflow_handle(run_id)
            history = await self._bounded(handle.fetch_history(rpc_timeout=self._timeout))
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return ()
            raise TemporalUnavailable(retry_after_s=2.0) from error
        return timeline(history.events, full=full)

    async def execution(self, run: Run) -> Execution:
        """What became of the workflow that ends the run. Raises TemporalUnavailable."""
        try:
            found = await self._bounded(self._handle(run).describe(rpc_timeout=self._timeout))
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return Execution.MISSING
            raise TemporalUnavailable(retry_after_s=2.0) from error
        # A state that is not known to be closed is not: whoever asks ends the run if it is.
        return _CLOSED.get(found.status, Execution.RUNNING) if found.status else Execution.RUNNING

    async def ping(self) -> None:
        """Raises TemporalUnavailable."""
        try:
            if not await self._bounded(self._connected().service_client.check_health(timeout=self._timeout)):
                raise TemporalUnavailable
        except RPCError as error:
            raise TemporalUnavailable from error

    async def _start(self, workflow: str, job: RunInput | ForeignInput, workflow_id: str) -> None:
        try:
            starting = self._connected().start_workflow(
                workflow,
                job,
                id=workflow_id,
                task_queue=self._task_queue,
                request_eager_start=True,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                task_timeout=timedelta(seconds=_DECISION_S),
                rpc_timeout=self._timeout,
            )
            await self._bounded(starting)
        except WorkflowAlreadyStartedError:
            _log.info("the workflow %s was started already", workflow_id)
        except RPCError as error:
            raise TemporalUnavailable(retry_after_s=2.0) from error

    def _handle(self, run: Run) -> WorkflowHandle[Any, Any]:
        """Of the workflow that ends the run: its own, or the watcher of a user's."""
        return self._connected().get_workflow_handle(watcher_id(run.id) if run.foreign else run.id)

    async def _bounded(self, call: Awaitable[_Answer]) -> _Answer:
        """The call as a whole: the client repeats one that was not taken for up to ten seconds, each time with its own bound."""
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return await call
        except TimeoutError:
            raise TemporalUnavailable(retry_after_s=2.0) from None

    def _connected(self) -> Client:
        if self._client is None:
            raise TemporalUnavailable(retry_after_s=2.0)
        return self._client

    async def _work(self, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        """Until stopped. A worker that dies, of a namespace that is missing for example, is replaced."""
        while (client := await self._connect(stopping)) is not None:
            self._client = client
            try:
                await self._serve(client, connected, stopping)
                return
            except (RPCError, RuntimeError) as error:
                _log.error("the Temporal worker failed; another one starts in %.0f s: %s", _RESTART_S, error)
            await _any_within(_RESTART_S, stopping)

    async def _serve(self, client: Client, connected: asyncio.Event, stopping: asyncio.Event) -> None:
        worker = Worker(
            client,
            task_queue=self._task_queue,
            workflows=[RunWorkflow, ForeignWorkflow],
            activities=self._activities.all,
            workflow_runner=workflow_runner(),
            max_concurrent_activities=self._max_agents,
            max_concurrent_workflow_tasks=max(100, self._max_agents // 10),
            max_cached_workflows=max(1000, self._max_agents),
            activity_task_poller_behavior=_AGENT_POLLS,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=_DECISION_S),
            max_heartbeat_throttle_interval=timedelta(seconds=1),
            default_heartbeat_throttle_interval=timedelta(seconds=1),
            graceful_shutdown_timeout=timedelta(seconds=self._drain_s),
        )
        running = asyncio.create_task(worker.run(), name="temporal worker's run")
        told = asyncio.create_task(stopping.wait())
        connected.set()
        try:
            await asyncio.wait([running, told], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                await worker.shutdown()
            await running
        finally:
            told.cancel()
            running.cancel()
            await asyncio.wait([told, running])

    async def _connect(self, stopping: asyncio.Event) -> Client | None:
        """A client; waits for Temporal with growing pauses. None when there is no need any more."""
        delay_s = 0.1
        while not stopping.is_set():
            try:
                async with asyncio.timeout(_CONNECT_S):
                    return await Client.connect(
                        self._address.target,
                        namespace=self._address.namespace,
                        tls=TLSConfig() if self._address.tls else False,
                        api_key=self._address.api_key,
                    )
            except (RPCError, RuntimeError, OSError, TimeoutError) as error:
                _log.info("connecting to Temporal failed: %s", error)
            await _any_within(delay_s, stopping)
            delay_s = min(delay_s * 2, 5.0)
        return None


def workflow_runner() -> WorkflowRunner:
    """No sandbox: it costs a quarter of a run's CPU and would check nothing, as all our code has to be passed through it. What
    keeps workflows deterministic is that recorded ones are replayed in tests. See docs/why/2026-11-no-workflow-sandbox.md."""
    return UnsandboxedWorkflowRunner()


async def _any_within(seconds: float, event: asyncio.Event) -> None:
    """Wait for the event, at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
