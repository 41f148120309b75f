"""Plans and templates that come with requests: they reach nothing, and no few words make gigabytes or work for minutes.

Jinja's sandbox keeps them from Python; what one filter hands to the next it does not bound.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.engine import Submission
from orchestrator.planning import PlanInvalid, Planner
from orchestrator.plans.template import TemplateFailed, TemplateInvalid, check_template, evaluate, render

NAMES = {
    "input": "a" * 30_000,
    "messages": [{"a": [1, 2]}] * 100,
    "outputs": {},
    "context": {},
    "metadata": {},
    "session_id": "s",
}

REACHING = [
    "{{ input.__class__ }}",
    "{{ input['__class__'] }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ input|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|join }}",
    "{{ input.format(input) }}",
    "{{ '{0.__class__}'.format(input) }}",
    "{{ input.format_map(messages[0]) }}",
    "{{ input.translate({}) }}",
    "{{ self }}",
    "{{ self._TemplateReference__context }}",
    "{{ loop }}",
    "{{ range(10) }}",
    "{{ cycler(1) }}",
    "{{ lipsum() }}",
    "{{ namespace() }}",
    "{{ dict(a=1) }}",
    "{{ config }}",
    "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}",
    "{% extends 'x' %}",
    "{% set x = 1 %}",
    "{% macro f() %}{% endmacro %}",
    "{% filter upper %}x{% endfilter %}",
    "{% call input() %}{% endcall %}",
    "{% with a = 1 %}{% endwith %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({}) }}",
    "{{ context.pop('a') }}",
    "{{ _used }}",
]

GROWING = [
    "{{ input|list|join(input)|length }}",
    "{{ [input, input]|map('list')|map('join', input)|list|length }}",
    "{{ input|list|map('replace', 'f', input)|list|length }}",
    "{{ input|list|map('list')|sum(start=[])|length }}",
    "{{ input|replace('f', input)|length }}",
    "{{ messages|tojson(indent=1000000000)|length }}",
    "{{ 1|round(1000000000, 'ceil') }}",
    "{{ 1|round(-1000000000, 'ceil') }}",
    "{{ input * 1000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ input ~ input }}",
    "{% for a in input|list %}{{ input }}{% endfor %}",
    "{% for a in input|list %}{% for b in input|list %}{% endfor %}{% endfor %}",
    "{% for a in input|list %}{{ input|upper|length }}{% endfor %}",
    "{% for a in input|list %}{{ input.upper()|length }}{% endfor %}",
    "{% for a in input|list %}{% if input + 'b' == input %}{% endif %}{% endfor %}",
    "{% for a in input|list %}{% if input|list == input %}{% endif %}{% endfor %}",
    "{{ " + "(" * 5_000 + "1" + ")" * 5_000 + " }}",
    "{{ input|int(0, 16) * input|int(0, 16) }}",
    "{{ 1" + "|abs" * 300 + " }}",
    "{{ " + "[" * 100 + "]" * 100 + " }}",
    "{% if " + "not " * 5_000 + "input %}{% endif %}",
]


def filled(text: str, names: dict[str, Any]) -> str:
    """As a plan's template is: looked at when it comes, filled in when its step runs."""
    check_template(text)
    return render(text, names)


@pytest.mark.parametrize("text", REACHING)
def test_they_reach_nothing_of_pythons(text: str) -> None:
    with pytest.raises((TemplateInvalid, TemplateFailed)):
        filled(text, NAMES)


@pytest.mark.parametrize("text", GROWING)
def test_they_are_stopped_before_they_have_grown(text: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((TemplateInvalid, TemplateFailed)):
            filled(text, {**NAMES, "input": "f" * 30_000})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 << 20


@pytest.mark.parametrize(
    "text", ["input|list|join(input)", "1|round(1000000000, 'ceil') > 1", "input.__class__", "9 ** 9 ** 9 > 1"]
)
def test_conditions_are_no_way_around(text: str) -> None:
    with pytest.raises((TemplateInvalid, TemplateFailed)):
        evaluate(text, NAMES)


def test_what_templates_are_for_still_works() -> None:
    names = {**NAMES, "input": "Hello", "outputs": {"a": "one\ntwo", "b": '{"x": 1.256}'}}
    assert render("{{ outputs.a|lines|join(', ') }}", names) == "one, two"
    assert render("{{ messages|map(attribute='a')|map('sum')|sum }} {{ 1.256|round(2) }}", names) == "300 1.26"
    assert render("{{ {'a': [1]}|tojson }} {{ input|replace('ll', '')|upper }}", names) == '{"a": [1]} HEO'
    assert evaluate("'two' in outputs.a and input|length > 3", names)


def planner() -> Planner:
    return Planner(Catalog({"demo": ModelEntry.model_validate({"plan": {"agent": {"upstream": "demo"}}})}), ["demo"], {})


def agent(number: int) -> dict[str, Any]:
    return {"agent": {"upstream": ["demo"], "name": f"a{number}", "answers": number == 0}}


def nested(depth: int) -> dict[str, Any]:
    step = agent(0)
    for number in range(depth):
        step = {"retry": {"step": step, "name": f"r{number}"}}
    return step


PLANS = {
    "more steps than are good": {"sequential": {"steps": [{"sequential": {"steps": [agent(n) for n in range(60)]}}] * 10}},
    "a great many steps": {"sequential": {"steps": [{"sequential": {"steps": [agent(n) for n in range(200)]}}] * 200}},
    "depth": nested(30),
    "more depth": nested(5_000),
    "a long template": {"agent": {"upstream": ["demo"], "system": "{{ input }}" * 100_000}},
    "a template that reaches": {"agent": {"upstream": ["demo"], "system": "{{ input.__class__ }}"}},
    "a long condition": {"conditional": {"if": "input or " * 1_000 + "input", "then": agent(0)}},
    "a deep condition": {"conditional": {"if": "not " * 900 + "input", "then": agent(0)}},
    "somebody's workflow": {"workflow": {"type": "Payout", "task_queue": "bank"}},
    "no upstream of ours": {"agent": {"upstream": ["http://169.254.169.254/"]}},
    "no tool of ours": {"agent": {"upstream": ["demo"], "tools": ["os:system"]}},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_plans_that_come_with_requests_are_refused_before_anything_runs(plan: dict[str, Any]) -> None:
    with pytest.raises(PlanInvalid):
        planner().resolve(Submission("inline", {"messages": []}, plan=plan))


def test_what_is_remembered_of_templates_is_bounded() -> None:
    """The cache of parsed templates held a thousand of any length, from anybody."""
    tracemalloc.start()
    try:
        for number in range(3):
            check_template("{{ input }}" * 2_000 + str(number))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000
