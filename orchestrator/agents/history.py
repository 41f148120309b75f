"""What a later attempt finds in the log: how far the earlier ones came."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from functools import reduce
from typing import Any

import msgspec

from orchestrator.agents.job import Stop
from orchestrator.agents.outputs import goes_on
from orchestrator.agents.transcript import Transcript
from orchestrator.agents.turn import RESULTS, Turn
from orchestrator.endings import failed_state, outcome
from orchestrator.errors import Failure
from orchestrator.events import Event, EventType
from orchestrator.plans.interpreter import StepResult
from orchestrator.runs import Outcome, RunState
from orchestrator.streamlog.log import Log
from orchestrator.upstreams.upstream import Usage

_PAGE = 512
_OF_TOOLS = RESULTS | {EventType.TOOL_INVOKED}


class Past(msgspec.Struct, frozen=True):
    """What one agent has said in a run so far, and how far it came in one visit.

    `transcript` is everything that readers have of it, of earlier visits too; `anew`: an earlier visit was complete, or a turn of
    it was, so this one does not go on from there.

    `turns` are those that ended in calls of our tools, with the results that the log has; `current` is what was said since.

    `attempts` is how often the visit started; `output` says that its last call completed. `usage` is what its calls reported, and
    `unreported` what was said in a call that was lost before it could. `resumed`: it broke off because the run was paused, and
    the run goes on now. `begun_ms`: when it first started, or, what matters more, when the run was resumed last. `result`: the
    visit is over.
    """

    transcript: Transcript
    anew: bool = False
    turns: list[Turn] = msgspec.field(default_factory=list)
    current: Transcript | None = None
    attempts: int = 0
    output: Event | None = None
    usage: Usage | None = None
    unreported: Transcript = msgspec.field(default_factory=Transcript)
    resumed: bool = False
    begun_ms: int | None = None
    result: StepResult | None = None


async def past(log: Log, run_id: str, agent_id: str, visit: int = 1) -> Past:
    """Read the run's log for what this agent said. Visits count its beginnings from 1."""
    said: list[Event] = []
    resumed, begun_ms = False, None  # by the clocks of those who spoke, as whoever goes on has one too; the log's may be off
    async for event in _events(log, run_id):
        if event.agent_id == agent_id:
            said.append(event)
            resumed = False
            begun_ms = _ms(event) if begun_ms is None or event.type == EventType.AGENT_STARTED else begun_ms
        elif event.type == EventType.WORKFLOW_RESUMED:
            resumed = True
            begun_ms = begun_ms and _ms(event)
    earlier, now = _visit(said, visit)
    starts = sum(event.type in (EventType.AGENT_STARTED, EventType.AGENT_RETRYING) for event in now)
    outputs = [event for event in now if event.type == EventType.LLM_OUTPUT]
    last = outputs[-1] if outputs else None
    turns, current = _turns(now)
    lost = now[now.index(last) + 1 :] if last is not None else now
    return Past(
        transcript=Transcript.of(said),
        anew=any(event.type == EventType.AGENT_COMPLETED or _ends_turn(event) for event in earlier),
        turns=turns,
        current=Transcript.of(current) if turns else None,
        attempts=starts,
        output=last if last is not None and _is_final(last) else None,
        usage=reduce(Usage.plus, (msgspec.convert(_payload(output)["usage"], Usage) for output in outputs)) if outputs else None,
        unreported=Transcript.of(lost),
        resumed=resumed,
        begun_ms=begun_ms if now else None,
        result=_result(now),
    )


def _visit(said: list[Event], visit: int) -> tuple[list[Event], list[Event]]:
    """What an agent said before a visit, and in it."""
    starts = [place for place, event in enumerate(said) if event.type == EventType.AGENT_STARTED]
    if visit == 1:
        starts = [0, *starts[1:]]  # a user's own worker need not say that its agent starts
    begin = starts[visit - 1] if visit <= len(starts) else len(said)
    end = starts[visit] if visit < len(starts) else len(said)
    return said[:begin], said[begin:end]


def _result(said: list[Event]) -> StepResult | None:
    """How a visit ended, if it did."""
    for event in reversed(said):
        if event.type == EventType.AGENT_COMPLETED:
            return StepResult(RunState.COMPLETED)
        if event.type == EventType.AGENT_FAILED:
            failure = msgspec.convert({"message": "The agent failed.", **_payload(event)["error"]}, Failure)
            return StepResult(failed_state(failure), failure=failure, step=event.agent_id)
    return None


def _turns(said: Sequence[Event]) -> tuple[list[Turn], list[Event]]:
    """The turns that ended in calls of our tools, and what was said after the last of them."""
    turns: list[Turn] = []
    since: list[Event] = []
    for event in said:
        if event.type == EventType.LLM_OUTPUT and (turn := Turn.of(event)) is not None:
            turns.append(turn)
            since = []
        elif turns and event.type in _OF_TOOLS:
            turns[-1].note(event)
        else:
            since.append(event)
    return turns, since


def _ends_turn(event: Event) -> bool:
    return event.type == EventType.LLM_OUTPUT and goes_on(_payload(event))


def _is_final(output: Event) -> bool:
    payload = _payload(output)
    return not payload.get("aborted") and not goes_on(payload)


async def asked_to_stop(log: Log, run_id: str) -> Stop | None:
    """Whether somebody has asked for the run to be cancelled, and in which words. What is in the log cannot be lost."""
    for entry in await log.kept(run_id):
        if entry.event.type == EventType.WORKFLOW_CANCELLING:
            asked = _payload(entry.event)
            return Stop("cancelled", asked.get("reason"), asked.get("by"))
    return None


async def ended(log: Log, run_id: str) -> Outcome | None:
    """How the run ended, if its log says so."""
    tail = await log.tail(run_id)
    if tail is None or tail.seq < 2:
        return None
    entries = await log.read(run_id, tail.seq - 2, 2)
    return next((found for entry in entries if (found := outcome(entry.event)) is not None), None)


def _payload(event: Event) -> dict[str, Any]:
    return event.payload or {}


def _ms(event: Event) -> int:
    return round(datetime.fromisoformat(event.timestamp).timestamp() * 1000)


async def _events(log: Log, run_id: str) -> AsyncIterator[Event]:
    seq = 0
    while entries := await log.read(run_id, seq, _PAGE):
        seq = entries[-1].seq
        for entry in entries:
            yield entry.event
