"""The smallest instance of a schema, checked against what the schema says."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.upstreams.instances import smallest


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, None),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}}, {"a": "example", "b": False}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": "example"}),
        ({"properties": {"a": {"const": 5}}}, {"a": 5}),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"type": "array"}, []),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "number", "minimum": 0.5, "multipleOf": 0.5}, 0.5),
        ({"type": "string", "minLength": 9}, "example.."),
        ({"type": "string", "maxLength": 2}, "ex"),
        ({"type": "string", "format": "date"}, "2000-01-01"),
        ({"type": ["string", "null"]}, "example"),
        ({"type": "null"}, None),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, 0),
        (
            {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}], "type": "object"},
            {"a": 1, "b": 2},
        ),
        ({"$defs": {"p": {"type": "object", "properties": {"x": {"type": "integer"}}}}, "$ref": "#/$defs/p"}, {"x": 0}),
    ],
)
def test_smallest(schema: dict[str, Any], value: Any) -> None:
    assert smallest(schema) == value


def test_recursion_ends_soon() -> None:
    """A client writes the schema: a tree that doubles on every level must not grow to the sky."""
    node = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "more": {"type": "array", "minItems": 100}},
    }
    start = time.monotonic()
    smallest(node)
    assert time.monotonic() - start < 1
