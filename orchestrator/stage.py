"""What the steps of a plan do in the world, whoever interprets it: filled-in questions, conditions, approvals, progress, the end.

All that a run's steps have brought is in its log. It is read from there each time, so any process can go on with any run, and
nothing of it is in a Temporal history.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from orchestrator import endings
from orchestrator.agents.history import past
from orchestrator.agents.job import Job
from orchestrator.agents.outputs import Answers
from orchestrator.approvals import Approvals
from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.errors import Failure
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.foreign import workflow_input
from orchestrator.herald import Herald
from orchestrator.plans.interpreter import Branch, StepResult, Verdict
from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Progress
from orchestrator.plans.state import Asked, State
from orchestrator.plans.steps import Agent, Approval, Child, Conditional
from orchestrator.plans.template import evaluate, is_template, render
from orchestrator.plans.tree import Node
from orchestrator.runs import Run, RunRequest, RunState, last_said
from orchestrator.spending.ledger import usage_of
from orchestrator.streamlog.log import AppendSkipped, Log, LogClosed, LogMissing
from orchestrator.upstreams.upstream import Usage

_log = logging.getLogger(__name__)

INLINE_CHARS = 20_000
"""Templates over less text are filled in where they are: handing them to a thread would cost more."""

_Filled = TypeVar("_Filled")

PLAN = "plan:"
"""The writer of a plan's progress; with a step's name, of that step's. No agent can have this name."""


class Stage:
    def __init__(self, log: Log, ender: Ender, herald: Herald, approvals: Approvals, clock: Clock) -> None:
        self.log = log
        self.herald = herald
        self._ender = ender
        self._approvals = approvals
        self._clock = clock

    async def job(
        self,
        run: Run,
        request: RunRequest,
        plan: Plan,
        node: Node,
        *,
        visit: int,
        attempt: int,
        fresh: bool,
        final: bool,
        lease_ms: int,
    ) -> Job:
        """What an agent is asked, filled in. Raises TemplateFailed, LogUnavailable."""
        step = node.spec
        assert isinstance(step, Agent)
        system: str | None = step.system
        messages: list[dict[str, Any]] | None = None
        if step.input is not None:
            messages = [{"role": "user", "content": step.input}]
        if node.scope or is_template(step.input or "") or is_template(system or ""):
            state, asked = await self._state(run, plan, node, request)

            def fill() -> tuple[list[dict[str, Any]], str | None]:
                names = state.names(plan.root, node, asked)
                if step.input is None:
                    messages = state.asked(plan.root, node, asked).messages
                else:
                    messages = [{"role": "user", "content": render(step.input, names)}]
                return messages, None if step.system is None else render(step.system, names)

            messages, system = await _filled(fill, state, asked)
        return Job(
            run=run,
            request=request,
            step=step,
            attempt=attempt,
            final=final,
            lease_ms=lease_ms,
            visit=visit,
            fresh=fresh,
            messages=messages,
            system=system,
        )

    async def choose(self, run: Run, request: RunRequest, plan: Plan, node: Node) -> Branch:
        """Which side of a condition holds. Raises TemplateFailed, LogUnavailable."""
        assert isinstance(node.spec, Conditional)
        state, asked = await self._state(run, plan, node, request)
        condition = node.spec.condition
        if await _filled(lambda: evaluate(condition, state.names(plan.root, node, asked)), state, asked):
            return "then"
        return "none" if node.spec.otherwise is None else "else"

    async def tell(
        self, run_id: str, writer: str, attempt: int, number: int, progress: Sequence[Progress], *, again: bool = False
    ) -> None:
        """Say these as the writer's append of this number. Harmless when repeated, or when the run has ended.

        `again`: an earlier execution may have said some of it, which is then not said once more; nor does progress fall behind
        what it said. So it is, too, where the log has lost what was said before.
        """
        try:
            if not again:
                try:
                    await self._say(run_id, writer, attempt, number, progress)
                    return
                except AppendSkipped:
                    _log.warning("a run's log has lost progress", extra={"workflow_id": run_id})
            if news := await self._news(run_id, progress):
                await self._say(run_id, writer, attempt, 0, news)
        except (LogClosed, LogMissing):
            _log.info("a run had ended before its progress could be told", extra={"workflow_id": run_id})

    async def _say(self, run_id: str, writer: str, attempt: int, number: int, progress: Sequence[Progress]) -> None:
        told = [await self._told(run_id, one) for one in progress]
        at = timestamp(int(self._clock.time() * 1000))
        events = [Event(EventType.PROGRESS, at, message=one.message, payload=one.payload()) for one in told]
        await self.log.append(run_id, writer, attempt, number, [encode(event) for event in events], events=events)

    async def request_approval(self, run: Run, request: RunRequest, plan: Plan, node: Node, visit: int) -> str:
        """Ask for the decision that `node` wants, once. Returns its id. Raises TemplateFailed, LogUnavailable."""
        assert isinstance(node.spec, Approval)
        state, asked = await self._state(run, plan, node, request)
        names = state.names(plan.root, node, asked)
        now_ms = int(self._clock.time() * 1000)
        payload = {
            "approval_id": approval_id(node, visit),
            "step": node.name,
            "proposed_action": render(node.spec.action, names),
            "reason": None if node.spec.reason is None else render(node.spec.reason, names),
            "expires_at": timestamp(now_ms + round(node.spec.timeout_s * 1000)),
        }
        await self._approvals.ask(run, payload)
        return approval_id(node, visit)

    async def expire_approval(self, run: Run, node: Node, visit: int) -> Verdict:
        """Nobody has decided in time, or so it seems: what holds now."""
        assert isinstance(node.spec, Approval)
        decision = {
            "approval_id": approval_id(node, visit),
            "step": node.name,
            "approved": node.spec.on_timeout == "approve",
            "feedback": "nobody decided in time",
            "decided_by": "timeout",
        }
        return msgspec.convert(await self._approvals.settle(run, decision), Verdict)

    async def look(self, run: Run, node: Node, visit: int) -> dict[str, Any]:
        """What the log says about an approval that somebody waits for: `decision`, `cancelled`, or nothing."""
        for entry in await self.log.kept(run.id):
            event, payload = entry.event, entry.event.payload or {}
            if event.type == EventType.APPROVAL_DECISION and payload.get("approval_id") == approval_id(node, visit):
                return {"decision": payload}
            if event.type == EventType.WORKFLOW_CANCELLING:
                return {"cancelled": True}
        return {}

    async def child_input(self, run: Run, request: RunRequest, plan: Plan, node: Node) -> Any:
        """The one argument of a workflow that is a step. Raises TemplateFailed, InvalidRequest, LogUnavailable."""
        assert isinstance(node.spec, Child)
        state, asked = await self._state(run, plan, node, request)
        if node.spec.input is None:
            return workflow_input(run, request, "request")
        return render(node.spec.input, state.names(plan.root, node, asked))

    async def child_output(self, run_id: str, node: Node, visit: int, result: Any) -> None:
        """What a workflow that is a step brought, as what an agent of its name said; of nothing, what it said meanwhile."""
        text = result if isinstance(result, str) else "" if result is None else msgspec.json.encode(result).decode()
        if not text:
            text = (await past(self.log, run_id, node.name)).unreported.text
        payload = {"call_id": node.name, "finish_reason": "stop", "usage": Usage().facts()}
        at = timestamp(int(self._clock.time() * 1000))
        events = [
            Event(EventType.LLM_OUTPUT, at, node.name, text, payload),
            Event(EventType.AGENT_COMPLETED, at, node.name),
        ]
        await self.log.append(run_id, f"said:{node.name}/{visit}", 1, 1, [encode(event) for event in events], events=events)

    async def end(self, run_id: str, plan: Plan, result: StepResult) -> None:
        """Close the log of a run whose plan came to this. Harmless when it is closed."""
        events = [entry.event for entry in await self.log.kept(run_id)]
        match result.state:
            case RunState.COMPLETED:
                text, finish_reason = _answer(plan, events)
                usage = usage_of(events) or Usage()
                await self._ender.complete(run_id, [], text, usage.facts(), finish_reason)
            case RunState.CANCELLED:
                await self._ender.cancel(run_id, *_cancelled(result, events))
            case _:
                await self._ender.fail(run_id, _worded(result, events))

    async def _news(self, run_id: str, progress: Sequence[Progress]) -> Sequence[Progress]:
        """Those that the log does not have, with at least the fraction that was told last."""
        said = [entry.event.payload or {} for entry in await self.log.kept(run_id) if entry.event.type == EventType.PROGRESS]
        known = {_facts(one) for one in said}
        told = max((one["progress"] for one in said if "step_name" in one), default=0.0)  # a user's worker tells what it likes
        news = [one for one in progress if _facts(one.payload()) not in known]
        return [msgspec.structs.replace(one, progress=max(one.progress, told)) for one in news]

    async def _told(self, run_id: str, progress: Progress) -> Progress:
        """With the words of the failure, which are in the log and nowhere else."""
        if progress.status != "failed" or progress.cause is None:
            return progress
        events = [entry.event for entry in await self.log.kept(run_id)]
        failure = _said_failure(events, progress.cause)
        return progress if failure is None else msgspec.structs.replace(progress, error=failure.message)

    async def _state(self, run: Run, plan: Plan, node: Node, request: RunRequest) -> tuple[State, Asked]:
        asked = Asked(
            last_said(request.body),
            request.body.get("messages", []),
            request.context or {},
            run.metadata or {},
            run.session_id,
        )
        return State(entry.event for entry in await self.log.kept(run.id)), asked


def _facts(payload: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two words of progress the same one."""
    return tuple(payload.get(key) for key in ("step_name", "status", "parallel_index", "attempt", "branch"))


async def _filled(fill: Callable[[], _Filled], state: State, asked: Asked) -> _Filled:
    """Templates over much text are filled in beside the loop: what they do with it is bounded, and may still take seconds."""
    if len(asked.input) + state.size <= INLINE_CHARS:
        return fill()
    return await asyncio.to_thread(fill)


def approval_id(node: Node, visit: int) -> str:
    """Of the decision that a step wants, each time it is done."""
    return node.name if visit == 1 else f"{node.name}~{visit}"  # no step's name has a tilde


def _answer(plan: Plan, events: Sequence[Event]) -> tuple[str, str]:
    """The text of the agent that answered, and why it ended; of a plan whose answering agent had no visit, what it came to."""
    answers, last = Answers(), None
    for event in events:
        relevant = event.type in (EventType.AGENT_STARTED, EventType.LLM_OUTPUT) and event.agent_id in plan.answers
        if relevant and (text := answers.add(event)) is not None:
            last = text, (event.payload or {}).get("finish_reason") or "stop"
    return last or (State(events).result(plan.root), "stop")


def _worded(result: StepResult, events: Sequence[Event]) -> Failure:
    failure = result.failure or endings.ENGINE_ERROR
    if result.step is not None:
        failure = _said_failure(events, result.step) or failure
    if result.where:
        failure = msgspec.structs.replace(failure, message=f"{': '.join(result.where)}: {failure.message}")
    return failure


def _cancelled(result: StepResult, events: Sequence[Event]) -> tuple[str | None, str | None]:
    """Why the run is cancelled, and by whom, if the plan knows; of a step that was denied, with what was said about it."""
    for event in reversed(events):
        payload = event.payload or {}
        if event.type == EventType.APPROVAL_DECISION and result.step is not None and payload.get("step") == result.step:
            feedback = payload.get("feedback")
            return f"{result.reason}: {feedback}" if feedback else result.reason, payload.get("decided_by")
    return result.reason, None


def _said_failure(events: Sequence[Event], step: str) -> Failure | None:
    for event in reversed(events):
        if event.type == EventType.AGENT_FAILED and event.agent_id == step:
            return msgspec.convert({"message": "The agent failed.", **(event.payload or {})["error"]}, Failure)
    return None
