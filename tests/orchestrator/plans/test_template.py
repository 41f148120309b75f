"""Templates and expressions: what they can say, what they cannot reach, and that nothing in them is a guess."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plans.template import (
    MAX_CHARS,
    NAMES,
    TemplateFailed,
    TemplateInvalid,
    check_expression,
    check_template,
    evaluate,
    render,
)

SEEN: dict[str, Any] = {
    "input": "CANARY",
    "messages": [{"role": "user", "content": "CANARY"}] * 3,
    "outputs": {
        "plan": "one\ntwo",
        "items": "mine",
        "score": "7",
        "team": [{"name": "a", "output": "A"}],
        "big": "x" * 1_000_000,
    },
    "context": {"user": {"name": "Ann"}},
    "metadata": {"k": 1},
    "session_id": None,
}


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("no template", "no template"),
        ("{{ input }}!", "CANARY!"),
        ("{{ outputs.plan|lines|first }}", "one"),
        ("{% for one in outputs.team %}{{ loop.index }}{{ one.name }}={{ one.output }}{% endfor %}", "1a=A"),
        ("{% if context.user.name == 'Ann' %}yes{% else %}no{% endif %}", "yes"),
        ("{{ outputs.items }}", "mine"),
        ("{{ context.user.missing|default('?') }}", "?"),
        ("{{ messages|map(attribute='role')|join(',') }}", "user,user,user"),
        ("{{ ['b', 'a']|sort|map('upper')|join }}", "AB"),
        ("{{ outputs.score|int + 1 }} {{ 'x'|int(0) }} {{ '1.5'|float|round(0) }}", "8 0 2.0"),
        ("{{ context|tojson }}", '{"user": {"name": "Ann"}}'),
        ("{# a note #}x\n", "x\n"),
    ],
)
def test_what_a_template_makes(text: str, made: str) -> None:
    assert render(text, SEEN) == made


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("outputs.score|int > 6", True),
        ("'two' in outputs.plan", True),
        ("-1 < 0", True),
        ("'}}' == input", False),
        ("session_id is none", True),
        ("outputs.other is defined", False),
        ("metadata.k == 1 and not (input == '')", True),
    ],
)
def test_whether_an_expression_holds(text: str, holds: bool) -> None:
    """`-1 < 0` was false: its sign, next to the braces that are put around it, was taken for the braces' own."""
    check_expression(text)
    assert evaluate(text, SEEN) is holds


@pytest.mark.parametrize(
    "text",
    [
        *("1/0", "5 % 0", "outputs.nobody == 1", "nothing", "input|int > 3", "input < 3", "loop.index", "input -", "", "1 if"),
        *("true }} {{ false", "outputs.nobody", "messages[7]", "messages.7", "{% if input %}", "input.title() / 2"),
    ],
)
def test_an_expression_without_a_value_is_no_guess(text: str) -> None:
    with pytest.raises((TemplateFailed, TemplateInvalid)):
        evaluate(text, SEEN)


REFUSED = (
    "{{ input.__class__ }}",
    "{{ input['__class__'] }}",
    "{{ input|attr('__class__') }}",
    "{{ messages.__len__.__globals__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages|map(attribute='__class__')|join }}",
    "{{ messages|sort(attribute='__class__.__name__')|join }}",
    "{{ messages|selectattr('__class__')|list }}",
    "{{ input.format }}",
    "{{ '{0.__class__}'.format(input) }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '{:999999999}'['format'](1) }}",
    "{{ '{x}'.format_map(context) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%s'|format(input) }}",
    "{{ self }}",
    "{{ self._TemplateReference__context }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ namespace() }}",
    "{{ range(10) }}",
    "{{ dict() }}",
    "{{ _rounds.left }}",
    "{{ messages|_bounded|list }}",
    "{{ loop.__class__ }}",
    "{% for x in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in messages %}{{ loop.depth }}{% endfor %}",
    "{% for x in messages %}{{ loop.cycle('a') }}{% endfor %}",
    "{% for x in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{% set x = 1 %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'secret' %}",
    "{% import 'os' as os %}",
    "{% extends input %}",
    "{% block x %}{% endblock %}",
    "{% call input() %}{% endcall %}",
    "{% filter upper %}{% endfilter %}",
    "{% with x = 1 %}{% endwith %}",
    "{{ input() }}",
    "{{ context.user.update({'name': 1}) }}",
    "{{ context.user.pop('name') }}",
    "{{ messages.append(1) }}",
    "{{ context.clear() }}",
)


@pytest.mark.parametrize("text", REFUSED)
def test_nothing_outside_is_reached(text: str) -> None:
    with pytest.raises((TemplateFailed, TemplateInvalid)):
        render(text, SEEN)


BOMBS = (
    "{{ 'a' * 9999999999 }}",
    "{{ [0] * 9999999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ " + "9" * 5000 + " }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "1+" * 5000 + "1 }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "{{ 1|round(-999999999) }}",
    "{{ 1|round(999999999, 'ceil') }}",
    "{{ context|tojson(indent=999999999) }}",
    "{{ outputs.big|replace('', outputs.big) }}",
    "{{ outputs.big|list|join(outputs.big) }}",
    "{{ outputs.big|map('replace', 'x', outputs.big)|list|length }}",
    "{{ outputs.big|map('list')|list|length }}",
    "{{ " + "+".join(["outputs.big"] * 100) + " }}",
    "{{ outputs.big }}{{ outputs.big }}",
    "{% for a in outputs.big %}{% for b in outputs.big %}{% endfor %}{% endfor %}",
    "{% for a in outputs.big %}{{ outputs.big|upper|length }}{% endfor %}",
    "{% for a in outputs.big[:300] %}{% for b in outputs.big[:300] %}{{ outputs.big|sort|length }}{% endfor %}{% endfor %}",
    "{% for a in outputs.big[:9999] %}{{ outputs.big[:9999] }}{% endfor %}",
)


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_what_would_grow_without_bound_is_stopped(text: str) -> None:
    began = time.monotonic()
    with pytest.raises((TemplateFailed, TemplateInvalid)):
        render(text, SEEN)
    assert time.monotonic() - began < 3.0


@pytest.mark.parametrize("text", ["{{ metadata[input] }}", "{{ input.nobody[input] }}", "{{ context[messages[0].content].x }}"])
def test_words_about_a_mistake_do_not_quote_what_it_was_filled_with(text: str) -> None:
    """They are kept in Temporal's history, where no prompt may be; Jinja's own say which name there was not."""
    with pytest.raises(TemplateFailed) as caught:
        render(text, SEEN)
    assert "CANARY" not in caught.value.message


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(TemplateFailed, match="'dict object' has no attribute 'nobody'"):
        render("{{ outputs.nobody }}", SEEN)
    with pytest.raises(TemplateInvalid, match="names 'inptu', which there is not"):
        check_template("{{ inptu }}")
    with pytest.raises(TemplateInvalid, match="uses 'macro'; only output, if and for are allowed"):
        check_template("{% macro m() %}{% endmacro %}")


def test_the_outputs_that_are_named() -> None:
    assert check_template("{{ outputs.a }}{% if outputs['b'] %}{{ outputs[input] }}{% endif %}{{ context.c }}") == {"a", "b"}
    assert check_expression("outputs.a|int > outputs['b']|length") == {"a", "b"}


WORDS = st.sampled_from(
    (
        *sorted(NAMES),
        *("{{", "}}", "{%", "%}", "{#", "#}", "(", ")", "[", "]", "'", '"', "|", ",", ".", "+", "-", "*", "/", "%", "=="),
        *("for", "in", "if", "endif", "endfor", "else", "recursive", "not", "is", "defined", "loop.index", "outputs.plan"),
        *("join", "int", "map", "replace", "tojson", "round", "attribute=", "__class__", "1", "0", "1e999", "0x9", "é", "\ud800"),
        "\n",
    )
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=25).map(" ".join)))
def test_whatever_is_written_is_filled_in_or_refused(text: str) -> None:
    for act in (check_template, check_expression, lambda text: render(text, SEEN), lambda text: evaluate(text, SEEN)):
        began = time.monotonic()
        try:
            made = act(text)
        except (TemplateInvalid, TemplateFailed):
            continue
        finally:
            assert time.monotonic() - began < 3.0
        assert not isinstance(made, str) or len(made) <= max(MAX_CHARS, len(text))
