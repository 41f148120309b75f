"""The smallest value that a JSON schema allows, so that a scripted upstream can serve structured output and forced tool calls.

Good for schemas that people write for models; patterns, `not` and conditions are not solved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 24
MAX_NODES = 2000

_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "someone@example.org",
    "hostname": "example.org",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def smallest(schema: Any) -> Any:
    """A value that `schema` accepts; None where it recurses without end. Raises TypeError or ValueError if it is no schema."""
    return _Search(schema if isinstance(schema, Mapping) else {}).value(schema, 0)


class _Search:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._budget = MAX_NODES

    def value(self, schema: Any, depth: int) -> Any:
        self._budget -= 1
        if not isinstance(schema, Mapping) or depth > MAX_DEPTH or self._budget < 0:
            return None
        if isinstance(schema.get("$ref"), str):
            return self.value(_referred(self._root, schema["$ref"]), depth + 1)
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("enum", "examples"):
            if isinstance(schema.get(key), list) and schema[key]:
                return schema[key][0]
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self.value(_simplest(schema[key], depth), depth + 1)
        if isinstance(schema.get("allOf"), list):
            return self.value(_merged(schema, self._root), depth + 1)
        return self._of_type(schema, depth)

    def _of_type(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if depth > MAX_DEPTH // 2 and "null" in kind else next(iter(kind), None)
        match kind or ("object" if "properties" in schema else None):
            case "object":
                properties = schema.get("properties") or {}
                names = schema.get("required", list(properties))
                return {str(name): self.value(properties.get(name, {}), depth + 1) for name in names}
            case "array":
                items = schema.get("items", {})
                return [self.value(items, depth + 1) for _ in range(min(schema.get("minItems", 0), 100))]
            case "string":
                return _string(schema)
            case "integer" | "number" as kind:
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return False
        return None


def _string(schema: Mapping[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), "example")
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    return text.ljust(min(least, 10_000), ".") if len(text) <= most else text[: int(most)]


def _number(schema: Mapping[str, Any], *, whole: bool) -> int | float:
    step = schema.get("multipleOf") or 1
    low = schema.get("minimum", -math.inf)
    if isinstance(limit := schema.get("exclusiveMinimum"), int | float) and not isinstance(limit, bool):
        low = max(low, limit + step)
    high = schema.get("maximum", math.inf)
    if isinstance(limit := schema.get("exclusiveMaximum"), int | float) and not isinstance(limit, bool):
        high = min(high, limit - step)
    value = max(low, min(0, high))
    value = math.ceil(value / step) * step
    return int(value) if whole else value


def _simplest(options: list[Any], depth: int) -> Any:
    """The first option, or deep down the one that ends a recursion."""
    if depth > MAX_DEPTH // 2:
        for option in options:
            if isinstance(option, Mapping) and option.get("type") == "null":
                return option
    return options[0]


def _referred(root: Mapping[str, Any], reference: str) -> Any:
    """What a reference within the schema points to (RFC 6901)."""
    place: Any = root
    for name in reference.removeprefix("#").split("/")[1:]:
        place = place.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(place, Mapping) else None
    return place


def _merged(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: value for key, value in schema.items() if key != "allOf"}
    for part in schema["allOf"]:
        if isinstance(part, Mapping) and isinstance(part.get("$ref"), str):
            part = _referred(root, part["$ref"])
        if isinstance(part, Mapping):
            both = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", ()), *part.get("required", ())]
            merged = {**merged, **part, "properties": both, **({"required": required} if required else {})}
    return merged
