"""Plans that come with requests, and the language of their templates."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from gateway.wire import task_bodies as bodies
from gateway.wire.progress_bodies import ExecuteBody, execution
from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.errors import InvalidRequest, ModelNotFound
from orchestrator.planning import Planner
from orchestrator.plans.template import (
    MAX_CHARS,
    TemplateFailed,
    TemplateInvalid,
    check_expression,
    check_template,
    evaluate,
    render,
)
from tests.security.fuzz.target import Target

_CATALOG = Catalog({"demo": ModelEntry.model_validate({"plan": {"agent": {"upstream": "demo"}}})})
_PLANNER = Planner(_CATALOG, ["demo"], {})
_NAMES = {
    "input": "a, b\nc",
    "messages": [{"role": "user", "content": "hi"}],
    "outputs": {"a": "one", "items": "two"},
    "context": {"x": [1, 2.5, None, True]},
    "metadata": {},
    "session_id": "s",
}


def template(data: bytes) -> Hashable:
    """A template is refused when it is looked at, fails when it is filled in, or makes a text of bounded length."""
    text = data.decode("utf-8", "replace")
    outcomes: list[Hashable] = []
    for look, fill in ((check_template, render), (check_expression, evaluate)):
        try:
            look(text)
            made = fill(text, _NAMES)
        except (TemplateInvalid, TemplateFailed) as error:
            outcomes.append(str(error)[:40])
            continue
        assert isinstance(made, bool) or len(made) <= MAX_CHARS
        assert "<class" not in str(made)
        assert "object at 0x" not in str(made)
        outcomes.append(type(made).__name__)
    return tuple(outcomes)


def inline_plan(data: bytes) -> Hashable:
    """A plan that comes with a request is refused with its place, or can be stored, and is read again as the same."""
    try:
        body = bodies.parse_body(ExecuteBody, data)
        submission = execution(body, "s")
        msgspec.json.encode(submission)
        plan = _PLANNER.resolve(submission).entry.plan
    except (InvalidRequest, ModelNotFound) as error:
        msgspec.json.encode(error.failure())
        return (error.code, error.param)
    assert plan is not None
    kept = plan.kept()
    assert type(plan).model_validate(kept).kept() == kept
    msgspec.json.encode(plan.outline())
    return len(plan.nodes)


_STEPS = [
    b'{"agent":{"upstream":["demo"],"name":"a","system":"{{ input }}"}}',
    b'{"parallel":{"branches":[{"agent":{"upstream":["demo"],"name":"b"}}]}}',
    b'{"conditional":{"if":"input","then":{"agent":{"upstream":["demo"],"name":"c"}}}}',
    b'{"retry":{"max_retries":3,"step":{"agent":{"upstream":["demo"],"name":"d"}}}}',
    b'{"approval":{"action":"x"}}',
    b'{"workflow":{"model":"demo","name":"e"}}',
]

TARGETS = {
    "template": Target(
        template,
        [
            b"{{ input|upper }} {% for m in messages %}{{ loop.index }}: {{ m.content|trim }}{% endfor %}",
            b"{% if 'a' in input and outputs.a|length > 2 %}yes{% else %}no{% endif %}",
            b"outputs['items'] == 'two' or context.x|sum > 1",
            b"{{ context.x|map('string')|join(', ')|replace('1', '2') }} {{ messages|tojson }} {{ 1.5|round(1) + 2 * 3 }}",
        ],
        [
            b"{{",
            b"}}",
            b"{%",
            b"%}",
            b"{#",
            b"#}",
            b"input",
            b"outputs",
            b"messages",
            b"|join",
            b"|map(",
            b"|attr(",
            b"|list",
            b"|sum",
            b"__class__",
            b"'__class__'",
            b".format(",
            b"|tojson",
            b"|round(",
            b"**",
            b"~",
            b"not ",
            b"[1:]",
            b"loop",
            b"|int(0,16)",
            b"{% for a in ",
            b"{% endfor %}",
            b"{% if ",
            b"{% endif %}",
            b"|replace(input,input)",
            b"|dictsort",
            b"|sort",
            b"|unique",
        ],
    ),
    "inline plan": Target(
        inline_plan,
        [b'{"workflow":{"name":"x","steps":[%b]},"input":{"a":1}}' % step for step in _STEPS] + [b'{"name":"demo","input":"hi"}'],
        [*_STEPS, b'"answers":true', b'"steps":[', b'"upstream":', b'"name":', b'"timeout_s":', b'"tools":["x"]'],
    ),
}
