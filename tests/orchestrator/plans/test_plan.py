"""Plans: what is refused with its path, and what a workflow is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from orchestrator.plans.plan import Plan

FULL: dict[str, Any] = {
    "name": "root",
    "upstream": ["a", "b"],
    "model": "m",
    "system": "You are a secret.",
    "parameters": {"temperature": 0.5},
    "on_cut": "continue",
    "attempts": 7,
    "timeout_s": 12.5,
}


def plan(**agent: Any) -> Plan:
    return Plan.model_validate({"agent": {"upstream": "a", **agent}})


def test_an_upstream_may_be_one_or_several() -> None:
    assert plan().agent.upstream == ("a",)
    assert plan(upstream=["a", "b", "a"]).upstreams() == {"a", "b"}
    assert plan(upstream={"a": 3, "b": 0}).upstreams() == {"a", "b"}


@pytest.mark.parametrize(
    ("agent", "place"),
    [
        ({"upstream": []}, ("agent", "upstream")),
        ({"upstream": {}}, ("agent", "upstream")),
        ({"upstream": {"a": 0, "b": 0}}, ("agent", "upstream")),
        ({"upstream": {"a": 1, "b": -1}}, ("agent", "upstream", "by weight", "b")),
        ({"upstream": {"a": "much"}}, ("agent", "upstream", "by weight", "a")),
        ({"upstream": {"a": float("inf")}}, ("agent", "upstream", "by weight", "a")),
        ({"upstream": {"a": float("nan")}}, ("agent", "upstream", "by weight", "a")),
        ({"route": {"hedge": {}}}, ("agent", "route")),
        ({"upstream": ["a", "a"], "route": {"hedge": {}}}, ("agent", "route")),
        ({"upstream": ["a", "b"], "route": {"hedge": {"after_s": 0}}}, ("agent", "route", "hedge", "after_s")),
        ({"upstream": ["a", "b"], "route": {"hedge": {"after_s": 1, "after_percentile": 9}}}, ("agent", "route", "hedge")),
        ({"upstream": ["a", "b"], "route": {"hedge": {"max_share": 1.5}}}, ("agent", "route", "hedge", "max_share")),
        ({"route": {"retry": {"attempts": 0}}}, ("agent", "route", "retry", "attempts")),
        ({"route": {"retry": {"on": ["bad_luck"]}}}, ("agent", "route", "retry", "on", 0)),
        ({"route": {"retry": {"backoff": 0.5}}}, ("agent", "route", "retry", "backoff")),
        ({"name": "with space"}, ("agent", "name")),
        ({"name": "said:ending"}, ("agent", "name")),
        ({"name": "x" * 65}, ("agent", "name")),
        ({"on_cut": "retry"}, ("agent", "on_cut")),
        ({"attempts": 0}, ("agent", "attempts")),
        ({"attempts": 21}, ("agent", "attempts")),
        ({"timeout_s": 0}, ("agent", "timeout_s")),
        ({"unknown": 1}, ("agent", "unknown")),
    ],
)
def test_a_mistake_is_told_with_its_place(agent: dict[str, Any], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        plan(**agent)
    assert [error["loc"][: len(place)] for error in caught.value.errors()] == [place]


def test_a_plan_survives_being_kept_beside_a_log() -> None:
    whole = Plan.model_validate({"agent": FULL})
    assert Plan.model_validate(whole.kept()) == whole
    assert whole.answers == ("root",)
    weighted = plan(upstream={"b": 1, "a": 2.5}, route={"retry": {"on": ["cut"]}, "hedge": {"after_s": 1}})
    again = Plan.model_validate(weighted.kept())
    assert (again, list(again.agent.upstream)) == (weighted, ["b", "a"])


def test_an_outline_decides_the_same_and_holds_no_words() -> None:
    whole = Plan.model_validate({"agent": FULL})
    outline = whole.outline()
    assert "secret" not in str(outline)
    assert "temperature" not in str(outline)
    expected = whole.agent.model_copy(update={"system": None, "parameters": {}})
    assert Plan.model_validate(outline).agent == expected


def test_a_step_is_found_by_its_name() -> None:
    whole = Plan.model_validate({"agent": FULL})
    assert whole.step("root").spec == whole.agent
    with pytest.raises(KeyError):
        whole.step("other")
