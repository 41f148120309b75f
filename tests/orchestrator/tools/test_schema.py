"""Arguments against schemas, and schemas that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.tools.redaction import Redactor
from orchestrator.tools.schema import MAX_ARGUMENT_BYTES, Schema, decoded
from orchestrator.tools.tool import InvalidArguments, ToolBroken, limited


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "objekt"}, "not a JSON schema"),
        ({"type": "object", "required": "name"}, "not a JSON schema"),
        ({"type": "string"}, "not that of an object"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(ToolBroken, match=problem):
        Schema(schema)


def test_references_go_nowhere_else() -> None:
    """A server could have us fetch any address by referring to it."""
    schema = Schema({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(ToolBroken, match="refers to what it does not contain"):
        schema.check({"a": 1})


def test_the_place_of_a_mistake_is_told() -> None:
    schema = Schema({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "integer"}}}})
    schema.check({"list": [1, 2], "more": True})
    with pytest.raises(InvalidArguments, match=r"arguments\.list\[1\]: 'two' is not of type 'integer'"):
        schema.check({"list": [1, "two"]})


@pytest.mark.parametrize(("text", "value"), [("", {}), (" \n", {}), ('{"a": [1]}', {"a": [1]})])
def test_what_models_write_for_no_arguments_is_none(text: str, value: dict[str, Any]) -> None:
    assert decoded(text) == value


@pytest.mark.parametrize("text", ["[]", "null", "{", '{"a": 1} x', "[" * 10_000, '{"a": "' + "x" * MAX_ARGUMENT_BYTES + '"}'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(InvalidArguments):
        decoded(text)


def test_secrets_are_found_by_name_and_by_value() -> None:
    redactor = Redactor(["sk-1234", "abc"])
    params = {
        "API-Key": "x",
        "nested": [{"access_token": {"deep": 1}, "url": "https://host/?key=sk-1234"}],
        "max_tokens": 3,
        "password": "",
        "alphabet": "abc",
    }
    assert redactor.value(params) == {
        "API-Key": "[redacted]",
        "nested": [{"access_token": "[redacted]", "url": "https://host/?key=[redacted]"}],
        "max_tokens": 3,
        "password": "",
        "alphabet": "abc",
    }
    assert redactor.text(json.dumps(params)).count("[redacted]") == 1


@pytest.mark.parametrize("length", [0, 9, 10])
def test_what_fits_is_left_as_it_is(length: int) -> None:
    assert limited("x" * length, 10) == "x" * length


def test_a_cut_does_not_split_a_character() -> None:
    assert limited("äöü€", 5) == "äö\n[Cut off: the result has 9 bytes, of which these are the first 5.]"
