"""A plan's steps, done by this process: those of a run that is not durable, or those that one activity of a durable run does."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec

from orchestrator.agents.desk import Beat, Desk, no_beat
from orchestrator.agents.job import Stop
from orchestrator.errors import HeadgateError
from orchestrator.events import EventType
from orchestrator.gate import Gate
from orchestrator.plans.interpreter import Branch, Paused, StepContext, StepResult, Verdict
from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Place, Progress, Share
from orchestrator.plans.steps import Approval
from orchestrator.plans.template import TemplateFailed
from orchestrator.plans.tree import Node
from orchestrator.runs import Run, RunRequest, RunState
from orchestrator.stage import Stage
from orchestrator.streamlog.log import LogUnavailable

_log = logging.getLogger(__name__)

_PATIENCE_S = 0.5
_LOOK_S = 5.0
"""When it is looked into the log for a decision that nobody told of: orders from other processes can be lost. Then after as long
again as it took so far."""

_ATTEMPTS = 1000
"""Writers' attempts of one execution: it may ask an agent again and again."""

_Answer = TypeVar("_Answer")


class Stopped(Exception):
    """The run was stopped while no agent worked for it."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.kind)
        self.stop = stop


class Execution(msgspec.Struct, frozen=True):
    """Who carries out steps, and how. `rank` outranks executions before it. `writer` says progress.

    `stays`: a pause is waited for here; otherwise the execution ends with it, and another goes on. `fresh`: nothing of the run
    can be in its log yet.
    """

    run: Run
    request: RunRequest
    plan: Plan
    rank: int
    writer: str
    lease_ms: int
    stays: bool
    fresh: bool
    beat: Beat = no_beat
    cancelled: Callable[[], Stop] | None = None


class InlineSteps(StepContext):
    """`StepContext` in this process."""

    def __init__(self, execution: Execution, stage: Stage, desk: Desk, gate: Gate) -> None:
        self._execution = execution
        self._stage = stage
        self._desk = desk
        self._gate = gate
        self._asked: dict[str, int] = {}
        self._told = 0
        self._working = 0
        self._left = False
        """An agent was taken from this execution, which ends with it: the others here are to leave their work as it is."""
        self._answered = 0
        """Pauses that are over: each has been answered with word that the run goes on."""

    async def checkpoint(self, step: str) -> None:
        """Raises Stopped when the run is cancelled, or the process goes down, while it stands still."""
        gate, said = self._gate, 0
        if gate.stop is None and gate.pause is not None and not self._execution.stays:
            raise Paused
        while gate.stop is None and gate.pause is not None:
            changed = gate.changed
            if said < gate.count and not self._working:
                said = gate.count
                paused = {"checkpoint": step, **gate.pause}
                await self._say(EventType.WORKFLOW_PAUSED, paused, f"paused-{said}", RunState.PAUSED)
            await self._change(step, changed, None)
        if gate.stop is not None:
            raise Stopped(gate.stop)
        if self._execution.stays and self._answered < gate.count:  # also where it was resumed before it stood still
            self._answered = gate.count
            await self._say(EventType.WORKFLOW_RESUMED, gate.resumed, f"resumed-{gate.count}", RunState.RUNNING)

    async def run_agent(self, node: Node, visit: int, *, final: bool) -> StepResult:
        execution = self._execution
        asked = self._asked[node.name] = self._asked.get(node.name, 0) + 1
        self._working += 1
        try:
            job = await self._patiently(
                lambda: self._stage.job(
                    execution.run,
                    execution.request,
                    execution.plan,
                    node,
                    visit=visit,
                    attempt=execution.rank * _ATTEMPTS + asked if execution.rank else asked,
                    fresh=execution.fresh and asked == 1,
                    final=final,
                    lease_ms=execution.lease_ms,
                )
            )
            return await self._desk.work(job, beat=execution.beat, cancelled=self._why)
        except TemplateFailed as error:
            if final:
                raise
            return StepResult(RunState.FAILED, failure=error.failure(), step=node.name)
        except HeadgateError:
            self._left = True
            raise
        finally:
            self._working -= 1
            self._gate.notify()

    async def run_whole(self, node: Node, place: Place, share: Share) -> StepResult | None:
        return None

    async def choose(self, node: Node) -> Branch:
        execution = self._execution
        return await self._patiently(lambda: self._stage.choose(execution.run, execution.request, execution.plan, node))

    async def approve(self, node: Node, visit: int) -> Verdict:
        execution, gate = self._execution, self._gate
        assert isinstance(node.spec, Approval)
        asking = self._stage.request_approval
        wanted = await self._patiently(lambda: asking(execution.run, execution.request, execution.plan, node, visit))
        begun = asyncio.get_running_loop().time()
        late, look_s = begun + node.spec.timeout_s, _LOOK_S
        while wanted not in gate.decisions and gate.stop is None:
            changed, now = gate.changed, asyncio.get_running_loop().time()
            if now >= late:
                return await self._patiently(lambda: self._stage.expire_approval(execution.run, node, visit))
            if now >= begun + look_s:
                look_s *= 2
                found = await self._patiently(lambda: self._stage.look(execution.run, node, visit))
                if "decision" in found:
                    return msgspec.convert(found["decision"], Verdict)
            await self._change(node.name, changed, min(late, begun + look_s))
        if gate.stop is not None:
            raise Stopped(gate.stop)
        return msgspec.convert(gate.decisions[wanted], Verdict)

    async def run_child(self, node: Node, visit: int) -> StepResult:
        raise AssertionError("a plan with a workflow of somebody else's is durable")

    async def tell(self, progress: Sequence[Progress]) -> None:
        execution = self._execution
        self._told += 1
        number, rank, again = self._told, execution.rank or 1, not execution.fresh
        await self._patiently(lambda: self._stage.tell(execution.run.id, execution.writer, rank, number, progress, again=again))

    @property
    def goes_on(self) -> bool:
        return self._why().kind == "shutdown"

    def _why(self) -> Stop:
        """Why what is done here is cancelled, when it is."""
        return Stop("shutdown") if self._left else (self._execution.cancelled or sibling)()

    @property
    def long(self) -> bool:
        return False

    async def renew(self, next_step: int, share: Share) -> None:
        raise AssertionError("what keeps no history is never long")

    async def sleep(self, seconds: float) -> None:
        gate = self._gate
        late = asyncio.get_running_loop().time() + seconds
        while gate.stop is None and asyncio.get_running_loop().time() < late:
            await self._change("retry", gate.changed, late)
        if gate.stop is not None:
            raise Stopped(gate.stop)

    def random(self) -> float:
        return random.random()

    async def _change(self, step: str, changed: asyncio.Event, late: float | None) -> None:
        """Until `changed`, or it is late; the lease says meanwhile that the run is not forgotten, and the beat that we live."""
        execution = self._execution
        lease_ms, rank = execution.lease_ms, execution.rank or 1
        execution.beat()
        await self._patiently(lambda: self._stage.log.claim(execution.run.id, f"waiting:{step}", rank, lease_ms))
        bound = asyncio.get_running_loop().time() + lease_ms / 3000
        try:
            async with asyncio.timeout_at(bound if late is None else min(bound, late)):
                await changed.wait()
        except TimeoutError:
            return

    async def _say(self, kind: EventType, payload: dict[str, str | None], once: str, state: RunState) -> None:
        await self._patiently(lambda: self._stage.herald.say(self._execution.run.id, kind, payload, once=once, state=state))

    async def _patiently(self, act: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """However long the log is away: an outage is no failure of the run."""
        while True:
            try:
                return await act()
            except LogUnavailable as error:
                _log.warning("a step waits for the log: %s", error, extra={"workflow_id": self._execution.run.id})
                self._execution.beat()
                await asyncio.sleep(_PATIENCE_S)


def sibling() -> Stop:
    """When the interpreter itself cancels what an agent does here, it does so for the sake of another branch."""
    return Stop("cancelled", "another branch has failed")
