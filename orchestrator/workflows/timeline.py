"""A Temporal history in words. Payloads are not shown: they belong to whoever wrote the workflow. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from orchestrator.engine import TimelineEvent
from orchestrator.events import timestamp

_PREFIXES = (
    ("WORKFLOW_EXECUTION_SIGNALED", "SIG_RECEIVED"),
    ("WORKFLOW_EXECUTION_", "WF_"),
    ("WORKFLOW_TASK_", "WFT_"),
    ("ACTIVITY_TASK_", "ACT_"),
    ("TIMER_", "TIMER_"),
    ("START_CHILD_WORKFLOW_EXECUTION_", "CHILD_START_"),
    ("CHILD_WORKFLOW_EXECUTION_", "CHILD_"),
)
_SUMMARY = ("WF_", "ACT_SCHEDULED", "ACT_COMPLETED", "ACT_FAILED", "ACT_TIMED_OUT", "ACT_CANCELED", "TIMER_", "CHILD_", "SIG_")
"""What is shown unless everything is asked for: not the mechanics of workflow tasks."""


def timeline(events: Iterable[HistoryEvent], *, full: bool) -> Sequence[TimelineEvent]:
    """The history's events, oldest first; without `full`, those that say something about the run itself."""
    scheduled: dict[int, str] = {}
    told = []
    for event in events:
        name = _name(event)
        details = _details(event, scheduled)
        if full or (name.startswith(_SUMMARY) and not name.startswith("WFT_")):
            told.append(
                TimelineEvent(
                    type=name,
                    timestamp=timestamp(event.event_time.ToMilliseconds()),
                    event_id=event.event_id,
                    message=_words(event, details),
                    details=details or None,
                )
            )
    return told


def _name(event: HistoryEvent) -> str:
    name = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
    for prefix, short in _PREFIXES:
        if name.startswith(prefix):
            return short + name[len(prefix) :]
    return name


def _words(event: HistoryEvent, details: dict[str, Any]) -> str:
    """`Activity task completed: run_agent`."""
    words = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").replace("_", " ").capitalize()
    about = [details[name] for name in ("activity", "workflow", "signal_name", "timer_id", "failure") if name in details]
    return f"{words}: {', '.join(about)}" if about else words


def _details(event: HistoryEvent, scheduled: dict[int, str]) -> dict[str, Any]:
    """What is worth telling: which activity, which attempt, which signal, why something failed."""
    which = event.WhichOneof("attributes")
    if which is None:
        return {}
    attributes = getattr(event, which)
    fields = {field.name for field in attributes.DESCRIPTOR.fields}
    details: dict[str, Any] = {}
    if which == "activity_task_scheduled_event_attributes":
        scheduled[event.event_id] = attributes.activity_type.name
    if "activity_type" in fields:
        details["activity"] = attributes.activity_type.name
    elif "scheduled_event_id" in fields and attributes.scheduled_event_id in scheduled:
        details["activity"] = scheduled[attributes.scheduled_event_id]
    for field in ("signal_name", "timer_id", "attempt", "identity"):
        if field in fields and getattr(attributes, field):
            details[field] = getattr(attributes, field)
    if "workflow_type" in fields and attributes.workflow_type.name:
        details["workflow"] = attributes.workflow_type.name
    if "failure" in fields and attributes.failure.message:
        details["failure"] = attributes.failure.message[:500]
    return details
