"""What a run has used, read from its events: the sum over its calls, of all agents, also of those that broke off. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from orchestrator.agents.transcript import Transcript
from orchestrator.events import Event, EventType
from orchestrator.runs import Run
from orchestrator.upstreams.upstream import Usage

MOST_TOKENS = 1_000_000_000
"""No call uses more, and sums of as much fit into a database for ever."""


def usage_of(events: Iterable[Event]) -> Usage | None:
    """What the run's calls reported. None: there were none. A user's own worker may report anything; nonsense does not count."""
    total: Usage | None = None
    for event in events:
        if event.type == EventType.LLM_OUTPUT and event.payload and (usage := read_usage(event.payload.get("usage"))) is not None:
            total = usage if total is None else total.plus(usage)
    return total


def read_usage(value: object) -> Usage | None:
    """A usage as events have it; None for what is none."""
    try:
        usage = None if value is None else msgspec.convert(value, Usage)
    except msgspec.ValidationError:
        return None
    if usage is None:
        return None
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.cached or 0, usage.reasoning or 0)
    return usage if min(counts) >= 0 and max(counts) <= MOST_TOKENS else None


def spent(run: Run, usage: Usage | None) -> Usage:
    """What the run's tenant pays for. An answer that had been given before costs nothing."""
    return Usage() if usage is None or run.cached is not None else usage


def unreported(events: Iterable[Event]) -> dict[str, Transcript]:
    """By agent, what it said in a call that was lost before it could report."""
    said: dict[str, list[Event]] = {}
    for event in events:
        if event.agent_id is None:
            continue
        if event.type == EventType.LLM_OUTPUT:
            said.pop(event.agent_id, None)
        elif event.type == EventType.LLM_PARTIAL:
            said.setdefault(event.agent_id, []).append(event)
    return {agent_id: Transcript.of(events) for agent_id, events in said.items()}
