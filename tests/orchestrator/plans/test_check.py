"""What is wrong with plans: every mistake with its path, in the words of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gateway.test_settings import mistakes, write
from tests.orchestrator.plans.acting import plan

WRONG = yaml.safe_load((Path(__file__).parent / "mistakes.yaml").read_text())


@pytest.mark.parametrize("wrong", WRONG, ids=[wrong["says"][0].removeprefix("models.m.plan") for wrong in WRONG])
def test_a_mistake_is_told_with_its_place(wrong: dict[str, Any], tmp_path: Path) -> None:
    says = wrong.pop("says")
    settings = {"upstreams": {"d": {"kind": "scripted"}}, "models": {"other": {"plan": {"agent": {"upstream": "d"}}}, "m": wrong}}
    assert mistakes(write(tmp_path, yaml.safe_dump(settings))) == [f"config.yaml: {line}" for line in says]


def test_models_that_are_each_others_steps(tmp_path: Path) -> None:
    text = "models: {a: {plan: {workflow: {model: b}}}, b: {plan: {workflow: {model: c}}}, c: {plan: {workflow: {model: a}}}}"
    found = mistakes(write(tmp_path, text))
    assert any("is a step of itself: a → b → c → a" in line for line in found), found


def test_two_sides_of_a_condition_may_both_answer() -> None:
    side = "{agent: {name: %s, upstream: d, answers: true}}"
    either = plan("conditional: {if: 'true', then: " + side % "x" + ", else: " + side % "y" + "}")
    assert list(either.mistakes()) == []
    assert either.answers == ("x", "y")


def test_steps_that_are_not_named_are_counted_by_kind() -> None:
    found = plan(
        "sequential: [{agent: {upstream: d}}, {agent: {name: agent-2, upstream: d}}, {parallel: [{agent: {upstream: d}}]}, "
        "{workflow: {name: w, model: m, plan: {sequential: [{agent: {upstream: d}}, "
        "{workflow: {model: n, plan: {agent: {upstream: d}}}}]}}}]"
    )
    assert [node.name for node in found.root.walk()] == [
        *("sequential", "agent", "agent-2", "parallel", "agent-3"),
        *("w", "w.sequential", "w.agent", "w.workflow", "w.workflow.agent"),
    ]
    assert [(node.local, node.scope) for node in found.root.walk()][-2:] == [("workflow", "w."), ("agent", "w.workflow.")]


def test_the_longest_that_a_step_may_take() -> None:
    text = "parallel: {%s branches: [{agent: {upstream: d, timeout_s: 10}}, {agent: {upstream: d, timeout_s: 20}}]}"
    assert plan(text % "").root.longest_s == 20
    assert plan(text % "max_concurrency: 1,").root.longest_s == 30
    assert plan(text % "timeout_s: 5,").root.longest_s == 5
    retry = "retry: {max_retries: 2, delay_s: 1, backoff: 2, jitter: 0, step: {agent: {upstream: d, timeout_s: 10}}}"
    assert plan(retry).root.longest_s == 33
