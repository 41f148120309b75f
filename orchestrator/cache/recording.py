"""Recordings: what a run that ended well said, fit to be said again by another run. No I/O.

A recording is judged by its log. It is that of a run that was executed; it is whole, from its first event to its end; it stopped
because it had said everything; it unsaid nothing; and nothing was done for it outside, unless the model allows that. What was
done *to* the recorded run, its pauses and lost workers, is no part of what it said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from orchestrator.events import Entry, Event, EventType
from orchestrator.runs import Run, RunState

MAX_EVENTS = 20_000
MAX_BYTES = 2 << 20
"""A longer recording is not given again. It is read, restamped and written in one step each, which take 10 to 30 ms for one
this long, and in which Redis or this process does nothing for anybody else.
"""

_UNSAYS = frozenset({EventType.OUTPUT_RESET})
_DOES = frozenset(
    {
        EventType.TOOL_INVOKED,
        EventType.TOOL_OBSERVATION,
        EventType.TOOL_ERROR,
        EventType.APPROVAL_REQUESTED,
        EventType.APPROVAL_DECISION,
    }
)
_DONE_TO_IT = frozenset(
    {
        EventType.WORKFLOW_STARTED,
        EventType.WORKFLOW_PAUSING,
        EventType.WORKFLOW_PAUSED,
        EventType.WORKFLOW_RESUMED,
        EventType.WORKFLOW_CANCELLING,
        EventType.AGENT_RETRYING,
        EventType.BUDGET_THRESHOLD,
    }
)


class Recording(msgspec.Struct, frozen=True):
    """`bodies` are the encoded events between the run's first and its ending, `ending` is what its completion said."""

    run_id: str
    bodies: Sequence[bytes]
    ending: dict[str, Any]


def recording(run: Run, entries: Sequence[Entry], *, side_effects: bool) -> Recording | None:
    """What these entries, the whole log of a run, give to say again; None where they do not."""
    if run.state is not RunState.COMPLETED or run.cached is not None or not _whole(entries):
        return None
    ending = entries[-2].event
    if ending.type != EventType.WORKFLOW_COMPLETED or (ending.payload or {}).get("finish_reason") != "stop":
        return None
    refused = _UNSAYS if side_effects else _UNSAYS | _DOES
    bodies: list[bytes] = []
    for entry in entries[:-2]:
        if not entry.is_delta:
            event = entry.event
            if event.type in refused or not _stopped(event, run.answers):
                return None
            if event.type in _DONE_TO_IT:
                continue
        bodies.append(entry.body)
    if sum(map(len, bodies)) > MAX_BYTES:
        return None
    return Recording(run.id, bodies, ending.payload or {})


def _whole(entries: Sequence[Entry]) -> bool:
    """Nothing was trimmed or lost, and the end is there. `seq` is dense, so the ends tell."""
    return len(entries) >= 3 and entries[0].seq == 1 and entries[-1].seq == len(entries) and entries[-1].is_end


def _stopped(event: Event, answers: Collection[str]) -> bool:
    """Of several choices, each has to have said everything; the run's ending only tells of the first."""
    if event.type != EventType.LLM_OUTPUT or event.agent_id not in answers:
        return True
    return all(choice.get("finish_reason") == "stop" for choice in (event.payload or {}).get("choices", ()))
