"""How deep JSON from outside may be nested.

Decoders and encoders go down their own stack, and how much of it is left depends on who calls them. Without a bound, a value that
one process could just read and store would make others, further down their stacks, fail on it whenever they meet it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

MAX_DEPTH = 128


def nested_deeper(value: object, levels: int = MAX_DEPTH) -> bool:
    """Level by level, so that the question cannot fall into the hole that it asks about."""
    level = [value]
    for _ in range(levels):
        level = [child for parent in level for child in children(parent) if isinstance(child, (dict, list))]
        if not level:
            return False
    return True


def json_nested_deeper(raw: bytes, levels: int = MAX_DEPTH) -> bool:
    """The same of JSON that is valid. Cheap where brackets are few, as nearly always."""
    if raw.count(b"{") + raw.count(b"[") <= levels:
        return False
    return nested_deeper(msgspec.json.decode(raw), levels)


def children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
