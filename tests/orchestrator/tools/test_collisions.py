"""Requests that an agent with tools cannot serve."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import InvalidRequest
from orchestrator.tools.collisions import check_request

OURS = frozenset({"weather", "files", "search__query"})


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [named("theirs"), named("weather")]}, "tools[1].function.name"),
        ({"tools": [named("files__read")]}, "tools[0].function.name"),
        ({"tools": [named("search__query")]}, "tools[0].function.name"),
        ({"functions": [{"name": "weather"}]}, "functions[0].name"),
        ({"n": 2}, "n"),
    ],
)
def test_what_would_be_ambiguous_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_request(OURS, body)
    assert refused.value.param == param
    check_request(frozenset(), body)


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [named("theirs"), named("weather2"), named("search__other")], "n": 1},
        {"tools": [{"type": "custom"}, "nonsense", {"function": None}]},
        {"tools": "nonsense", "functions": None},
    ],
)
def test_what_is_clear_passes(body: dict[str, Any]) -> None:
    check_request(OURS, body)
