"""The plan interpreter: decides what runs next, and does no I/O itself.

It is plain deterministic asyncio over a `StepContext`, so the same code runs inside a Temporal workflow (where the context
schedules activities), inside one activity that carries out a whole parallel step, and, for models with `durability: none`, in the
serving process.

It keeps nothing that has to survive: what a step has brought is in the run's log, where the context finds it. Interpreting a plan
again from its beginning is harmless, because a conversation whose end is in the log is not held again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Literal, Protocol

import msgspec

from orchestrator import endings
from orchestrator.errors import Failure, HeadgateError
from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Place, Progress, Share, Status
from orchestrator.plans.steps import Agent, Approval, Child, Conditional, Parallel, Retry, Sequential
from orchestrator.plans.tree import Node
from orchestrator.runs import RunState

Branch = Literal["then", "else", "none"]


class StepResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a step ended. `ended`: the step knew the run's outcome and has closed its log already.

    Of one that failed or was denied, `step` is the one whose failure it was, and `where` are words about it, the outermost
    first. `told`: who carried it out has said so in the log.
    """

    state: RunState
    ended: bool = False
    failure: Failure | None = None
    reason: str | None = None
    step: str | None = None
    where: tuple[str, ...] = ()
    told: bool = False


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided about an approval, and by whom. What was said about it is in the log."""

    approved: bool
    decided_by: str | None = None


class Paused(Exception):
    """The run is to stand still, and what is asked of this process ends here until it goes on."""


class StepContext(Protocol):
    """What a plan may do while it runs. `visit` counts how often a step is done in a run, from 1."""

    async def checkpoint(self, step: str) -> None:
        """A safe point before `step`: stand still here for as long as the run is paused. Raises Paused where it cannot."""

    async def run_agent(self, node: Node, visit: int, *, final: bool) -> StepResult:
        """One upstream conversation. `final`: whatever becomes of it becomes of the run, so it may close the log itself.

        PAUSED if it broke off because the run is to be paused; run it again, and it goes on where it stopped.
        """

    async def run_whole(self, node: Node, place: Place, share: Share) -> StepResult | None:
        """A parallel step as a whole, somewhere else; PAUSED as an agent. None: interpret it here."""

    async def choose(self, node: Node) -> Branch:
        """Which side of a condition holds. Raises HeadgateError if it cannot be said."""

    async def approve(self, node: Node, visit: int) -> Verdict:
        """Ask for a decision and wait for it. Raises HeadgateError if it cannot be asked for."""

    async def run_child(self, node: Node, visit: int) -> StepResult:
        """A workflow of somebody else's workers."""

    async def tell(self, progress: Sequence[Progress]) -> None:
        """Say these in the run's log, once."""

    @property
    def goes_on(self) -> bool:
        """Whether what is cancelled here is taken up by another execution, so that nobody is to hear that it was."""

    @property
    def long(self) -> bool:
        """Whether this execution should be continued as another."""

    async def renew(self, next_step: int, share: Share) -> None:
        """Continue it as another from this top-level step on; all that was to be told is told."""

    async def sleep(self, seconds: float) -> None: ...

    def random(self) -> float:
        """At least 0 and less than 1."""


async def interpret(
    plan: Plan, context: StepContext, *, share: Share | None = None, first_step: int = 0, timeout_s: float | None = None
) -> StepResult:
    """Run the plan to its end and tell how it ended. `first_step` and `share` continue where another execution left off.

    `timeout_s`: how long it may take. A plan of one agent is not hurried: the agent knows when its run has to end.
    """
    interpreter = Interpreter(context)
    try:
        work = interpreter.plan(plan.root, share or Share.whole(), first_step)
        return await _within(None if plan.single else timeout_s, work)
    finally:
        await interpreter.told()


class Interpreter:
    def __init__(self, context: StepContext) -> None:
        self._context = context
        self._visits: dict[str, int] = {}
        self._untold: list[Progress] = []
        self._telling: asyncio.Task[None] | None = None

    async def plan(self, root: Node, share: Share, first_step: int = 0) -> StepResult:
        """A plain conversation has no steps that anybody wants to hear of. Those of a sequence are the run's own."""
        if isinstance(root.spec, Agent):
            return await self._agent(root, final=True)
        if not isinstance(root.spec, Sequential):
            return await self.step(root, Place(), share)
        return await _within(root.spec.timeout_s, self._top_level(root, share, first_step))

    async def _top_level(self, root: Node, share: Share, first_step: int) -> StepResult:
        for index in range(first_step, len(root.children)):
            if index > first_step and self._context.long:
                await self.told()
                await self._context.renew(index, share)
            result = await self.step(root.children[index], Place(index), share.part(len(root.children)))
            if result.state is not RunState.COMPLETED:
                return result
        return _DONE

    async def branches(self, node: Node, place: Place, share: Share) -> StepResult:
        """A parallel step whose start was told elsewhere. Its end is told here, without a way through Temporal in between."""
        assert isinstance(node.spec, Parallel)
        try:
            result = self._ended(node, place, share, await self._parallel(node, node.spec, place, share))
            return msgspec.structs.replace(result, told=True)
        finally:
            await self.told()

    async def step(self, node: Node, place: Place, share: Share) -> StepResult:
        """One step, from its start to its end, both told."""
        branch: Branch | None = None
        if isinstance(node.spec, Conditional):
            try:
                branch = await self._context.choose(node)
            except HeadgateError as error:
                self._tell(node, place, share, "started")
                return self._ended(node, place, share, _failed(node, error))
        self._tell(node, place, share, "started", branch)
        try:
            if not node.children or isinstance(node.spec, Parallel):
                await self.told()  # what it, or whoever carries it out, says follows
            result = await self._do(node, place, share, branch)
        except asyncio.CancelledError:
            if not self._context.goes_on:
                self._tell(node, place, share, "cancelled")
            raise
        return self._ended(node, place, share, result)

    async def told(self) -> None:
        """All that was to be told is in the log. Raises what it was refused with."""
        if self._telling is not None:
            await asyncio.shield(self._telling)

    def _ended(self, node: Node, place: Place, share: Share, result: StepResult) -> StepResult:
        if result.state is RunState.COMPLETED:
            share.finish()
        if result.told:
            return msgspec.structs.replace(result, told=False)
        match result.state:
            case RunState.COMPLETED:
                self._tell(node, place, share, "completed")
            case RunState.CANCELLED:
                self._tell(node, place, share, "cancelled")
            case _:
                self._tell(node, place, share, "failed", failed=result)
        return result

    async def _do(self, node: Node, place: Place, share: Share, branch: Branch | None) -> StepResult:
        match node.spec:
            case Agent():
                return await self._agent(node, final=False)
            case Sequential():
                return await _within(node.spec.timeout_s, self._sequential(node, place, share))
            case Parallel():
                whole = await self._whole(node, place, share)
                return whole or await self._parallel(node, node.spec, place, share)
            case Conditional():
                taken = {"then": 0, "else": 1}.get(branch or "none")
                return _DONE if taken is None else await self.step(node.children[taken], place, share.part())
            case Retry():
                return await self._retry(node, node.spec, place, share)
            case Approval():
                return await self._approval(node)
            case Child():
                return await self._child(node, place, share)

    async def _agent(self, node: Node, *, final: bool) -> StepResult:
        visit = self._visit(node)
        while True:
            await self._context.checkpoint(node.name)
            result = await self._context.run_agent(node, visit, final=final)
            if result.state is not RunState.PAUSED:
                return result

    async def _whole(self, node: Node, place: Place, share: Share) -> StepResult | None:
        while True:
            await self._context.checkpoint(node.name)
            result = await self._context.run_whole(node, place, share)
            if result is None or result.state is not RunState.PAUSED:
                return result

    async def _sequential(self, node: Node, place: Place, share: Share) -> StepResult:
        for child in node.children:
            result = await self.step(child, place, share.part(len(node.children)))
            if result.state is not RunState.COMPLETED:
                return result
        return _DONE

    async def _parallel(self, node: Node, spec: Parallel, place: Place, share: Share) -> StepResult:
        """The failure of a branch is the step's, or waits until all have ended. Whatever happens, none outlives the step."""
        count = len(node.children)
        slots = asyncio.Semaphore(spec.max_concurrency or count)

        async def branch(index: int, child: Node) -> StepResult:
            async with slots:
                own = share.part(count)
                where = msgspec.structs.replace(place, parallel_index=index, parallel_total=count)
                result = await self.step(child, where, own)
                if result.state in (RunState.FAILED, RunState.TIMEOUT) and spec.on_error == "collect":
                    own.finish()
                return result

        tasks = [asyncio.create_task(branch(index, child)) for index, child in enumerate(node.children)]
        try:
            return await _within(spec.timeout_s, _outcome(node, spec, tasks))
        finally:
            await _stopped(tasks)

    async def _retry(self, node: Node, spec: Retry, place: Place, share: Share) -> StepResult:
        inner, delay_s = node.children[0], spec.delay_s
        last = spec.max_retries + 1
        for attempt in range(1, last + 1):
            result = await self.step(inner, msgspec.structs.replace(place, attempt=attempt), share.part(held=True))
            if result.state not in (RunState.FAILED, RunState.TIMEOUT) or _unpaid(result):
                return result
            if attempt < last:
                await self._context.sleep(delay_s * (1 + spec.jitter * self._context.random()))
                delay_s *= spec.backoff
        return msgspec.structs.replace(result, where=(f"after {last} attempts", *result.where))

    async def _approval(self, node: Node) -> StepResult:
        visit = self._visit(node)
        await self._context.checkpoint(node.name)
        try:
            verdict = await self._context.approve(node, visit)
        except HeadgateError as error:
            return _failed(node, error)
        if verdict.approved:
            return _DONE
        words = f"'{node.local}' was not approved" + (f" by {verdict.decided_by}" if verdict.decided_by else "")
        return StepResult(RunState.CANCELLED, reason=words, step=node.name)

    async def _child(self, node: Node, place: Place, share: Share) -> StepResult:
        if node.children:
            assert isinstance(node.spec, Child)
            return await _within(node.spec.timeout_s, self.step(node.children[0], place, share.part()))
        visit = self._visit(node)
        await self._context.checkpoint(node.name)
        return await self._context.run_child(node, visit)

    def _visit(self, node: Node) -> int:
        visit = self._visits[node.name] = self._visits.get(node.name, 0) + 1
        return visit

    def _tell(
        self,
        node: Node,
        place: Place,
        share: Share,
        status: Status,
        branch: Branch | None = None,
        *,
        failed: StepResult | None = None,
    ) -> None:
        """Soon: whoever does the next step does not wait for it, and what gathers meanwhile is told together."""
        self._untold.append(
            Progress(
                step_name=node.name,
                step_index=place.step_index,
                step_type=node.kind,
                status=status,
                progress=share.total,
                error=None if failed is None or failed.failure is None else failed.failure.message,
                cause=None if failed is None else failed.step,
                parallel_index=place.parallel_index,
                parallel_total=place.parallel_total,
                attempt=place.attempt,
                branch=branch,
            )
        )
        if self._telling is None or (self._telling.done() and self._telling.exception() is None):
            self._telling = asyncio.create_task(self._tell_all())

    async def _tell_all(self) -> None:
        while self._untold:
            untold, self._untold = self._untold, []
            await self._context.tell(untold)


_DONE = StepResult(RunState.COMPLETED)
_LATE = StepResult(RunState.TIMEOUT, failure=endings.TIMEOUT)


def _failed(node: Node, error: HeadgateError) -> StepResult:
    return StepResult(RunState.FAILED, failure=error.failure(), step=node.name)


async def _within(seconds: float | None, work: Coroutine[Any, Any, StepResult]) -> StepResult:
    """What the work comes to, or that it took too long: agents take being cancelled for a result."""
    if seconds is None:
        return await work
    try:
        async with asyncio.timeout(seconds) as bound:
            result = await work
    except TimeoutError:
        if not bound.expired():
            raise
        return _LATE
    return _LATE if bound.expired() and result.state is RunState.CANCELLED and not result.ended else result


def _unpaid(result: StepResult) -> bool:
    """Whether nothing is left to pay for more: trying again, or going on without it, would only be refused again."""
    return result.failure is not None and result.failure.code in endings.BUDGETS


async def _outcome(node: Node, spec: Parallel, tasks: Sequence[asyncio.Task[StepResult]]) -> StepResult:
    """What the branches come to, as soon as it is known. Raises what one of them raises."""
    paused: Paused | None = None
    failed: list[StepResult] = []
    for finished in _as_they_end(tasks):
        task = await finished
        if task.cancelled():  # by itself: what it waited for was
            return StepResult(RunState.CANCELLED)
        if isinstance(error := task.exception(), Paused):
            paused = error  # the others come to a safe point as well
            continue
        result = task.result()
        match result.state:
            case RunState.COMPLETED:
                continue
            case RunState.FAILED | RunState.TIMEOUT:
                branch = node.children[tasks.index(task)].local
                failed.append(msgspec.structs.replace(result, where=(f"branch '{branch}'", *result.where)))
                if spec.on_error == "fail_fast" or len(failed) == len(tasks) or _unpaid(result):
                    return failed[-1]
            case _:
                return result
    if paused is not None:
        raise paused
    return _DONE


def _as_they_end(tasks: Sequence[asyncio.Task[StepResult]]) -> Sequence[Awaitable[asyncio.Task[StepResult]]]:
    """Each task, in the order in which they end. `asyncio.as_completed` gives results, not tasks, and its order is a set's."""
    loop = asyncio.get_running_loop()
    slots: list[asyncio.Future[asyncio.Task[StepResult]]] = [loop.create_future() for _ in tasks]
    free = iter(slots)
    for task in tasks:
        task.add_done_callback(lambda ended: next(free).set_result(ended))
    return slots


async def _stopped(tasks: Sequence[asyncio.Task[StepResult]]) -> None:
    """None of them goes on. What a branch said while it was stopped is in the log; here it matters no more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
