"""The `types` of a query: names of event types, separated by commas."""

from __future__ import annotations

import re

from orchestrator.errors import InvalidRequest
from orchestrator.events import EventType

_OWN = re.compile(r"X_[A-Z0-9_]{1,62}")


class UnknownType(InvalidRequest):
    """'types' has a name that no event has."""

    code = "unknown_event_type"


def wanted_types(text: str) -> frozenset[str]:
    """Empty for an empty text, which filters nothing. A name that no event can have raises UnknownType: it is a typing error."""
    names = frozenset(name for part in text.split(",") if (name := part.strip()))
    if unknown := sorted(name for name in names if name not in EventType.__members__ and not _OWN.fullmatch(name)):
        raise UnknownType(f"No event has the type '{unknown[0][:100]}'. Publishers' own begin with X_.", param="types")
    return names
