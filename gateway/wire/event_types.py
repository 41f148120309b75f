"""The names of event types on the wire: what server-sent events call them, and the `types` of a query."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.errors import InvalidRequest
from orchestrator.events import OWN_TYPE, EventType, is_event_type

SSE_NAMES: Mapping[str, str] = {
    EventType.LLM_PARTIAL: "thread.message.delta",
    EventType.LLM_OUTPUT: "thread.message.completed",
    EventType.WORKFLOW_PAUSING: "workflow.pausing",
    EventType.WORKFLOW_PAUSED: "workflow.paused",
    EventType.WORKFLOW_RESUMED: "workflow.resumed",
    EventType.WORKFLOW_CANCELLING: "workflow.cancelling",
    EventType.WORKFLOW_CANCELLED: "workflow.cancelled",
    EventType.STREAM_END: "done",
}
"""The `event:` of a type; that of any other is the type itself. Never `error`, which `EventSource` keeps for the connection."""

_TYPES = {name: str(type) for type, name in SSE_NAMES.items()}


_NAMES = "|".join([*EventType.__members__, *_TYPES, OWN_TYPE]).replace(".", "[.]")

TYPES = f"^ *(({_NAMES})? *, *)*({_NAMES})? *$"
"""What `types` looks like, as a regular expression."""


class UnknownType(InvalidRequest):
    """'types' has a name that no event has."""

    code = "unknown_event_type"


def wanted_types(text: str) -> frozenset[str]:
    """The types in `text`, names separated by commas. Empty for an empty text, which filters nothing.

    A type may be called by its name in the event stream as well: shannon-sdk does. A name that no event can have raises
    UnknownType: it is a typing error.
    """
    names = [name for part in text.split(",") if (name := part.strip())]
    types = frozenset(_TYPES.get(name, name) for name in names)
    if unknown := sorted(name for name in types if not is_event_type(name)):
        raise UnknownType(f"No event has the type '{unknown[0][:100]}'. Publishers' own begin with X_.", param="types")
    return types
