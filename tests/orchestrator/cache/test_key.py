"""Which requests ask the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestrator.cache.key import certain, digest
from orchestrator.plans.plan import Plan
from orchestrator.runs import Run, RunRequest

MESSAGES = [{"role": "user", "content": "Why?"}]


def plan(**agent: Any) -> dict[str, Any]:
    return Plan.model_validate({"agent": {"upstream": "demo", **agent}}).model_dump(mode="json")


RUN = Run("task-1", "acme", "m", ("agent",), 0)


def key(
    body: dict[str, Any], *, run: Run = RUN, model: str = "m", upstream_model: str = "m", context: Any = None, **agent: Any
) -> str:
    return digest(run, RunRequest(model=model, upstream_model=upstream_model, plan=plan(**agent), body=body, context=context))


BODY = {"messages": MESSAGES, "temperature": 0, "seed": 7, "stop": ["a", "b"]}


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(BODY.items())),
        {**BODY, "temperature": 0.0},
        {**BODY, "temperature": -0.0},
        {**BODY, "user": "alice", "metadata": {"a": "b"}, "safety_identifier": "x", "store": True, "prompt_cache_key": "k"},
        {**BODY, "top_p": None},
        {**BODY, "messages": [{"content": "Why?", "role": "user", "name": None, "tool_calls": None}]},
    ],
)
def test_the_same_question_in_other_words_of_json(same: dict[str, Any]) -> None:
    assert key(same) == key(BODY)


@pytest.mark.parametrize(
    "other",
    [
        {**BODY, "temperature": 0.5},
        {**BODY, "temperature": "0"},
        {**BODY, "seed": 8},
        {**BODY, "stop": ["b", "a"]},
        {**BODY, "tools": []},
        {**BODY, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}]},
        {**BODY, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {**BODY, "n": 2},
        {**BODY, "unknown": 1},
        {**BODY, "messages": [{"role": "user", "content": "Why? "}]},
        {**BODY, "messages": [{"role": "user", "content": "Why?", "name": "alice"}]},
        {**BODY, "messages": [{"role": "system", "content": "Why?"}]},
        {**BODY, "messages": MESSAGES * 2},
    ],
)
def test_another_question(other: dict[str, Any]) -> None:
    assert key(other) != key(BODY)


def test_all_of_them_have_keys_of_their_own() -> None:
    """The parameters and the messages cannot be mistaken for one another."""
    assert key({"messages": [], "a": [1]}) != key({"messages": [1], "a": []})


def test_the_model_and_its_plan_are_part_of_the_question() -> None:
    keys = [
        key(BODY),
        key(BODY, model="n"),
        key(BODY, upstream_model="n"),
        key(BODY, system="Be brief."),
        key(BODY, parameters={"top_p": 0.5}),
        key(BODY, upstream=["demo", "other"]),
        key(BODY, context={"language": "fr"}),
    ]
    assert len(set(keys)) == len(keys)
    assert key(BODY, context={}) == key(BODY)


@pytest.mark.parametrize(
    ("parameters", "body", "expected"),
    [
        ({}, {}, False),
        ({}, {"temperature": 0}, True),
        ({}, {"temperature": 0.0}, True),
        ({}, {"temperature": 0.1}, False),
        ({"temperature": 0}, {}, True),
        ({"temperature": 0}, {"temperature": None}, True),
        ({"temperature": 0}, {"temperature": 1}, False),
        ({"temperature": 1}, {"temperature": 0}, True),
    ],
)
def test_what_is_certain_has_temperature_zero(parameters: dict[str, Any], body: dict[str, Any], expected: bool) -> None:
    assert certain(Plan.model_validate({"agent": {"upstream": "demo", "parameters": parameters}}), body) is expected


@pytest.mark.parametrize(
    ("system", "counts"),
    [
        ("You are brief.", []),
        ("You talk to {{ metadata.name }}.", ["metadata"]),
        ("This is {{ session_id }}.", ["session_id"]),
        ("{{ session_id }} {{ metadata }}", ["metadata", "session_id"]),
    ],
)
def test_what_templates_see_of_whom_it_is_asked_for_counts(system: str, counts: list[str]) -> None:
    """A plan that greeted whom the metadata named greeted the next one by the name of the first."""
    others = {
        "metadata": msgspec.structs.replace(RUN, metadata={"name": "Bob"}),
        "session_id": msgspec.structs.replace(RUN, session_id="s-2"),
    }
    assert [name for name, run in others.items() if key(BODY, run=run, system=system) != key(BODY, system=system)] == counts
