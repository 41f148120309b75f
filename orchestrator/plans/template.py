"""Templates and expressions of plans: Jinja's language, less everything that reaches outside or grows without bound. No I/O.

A template sees `input` (what the user asked last), `messages`, `outputs` (of earlier steps, by name), `context`, `metadata` and
`session_id`, and nothing else: no attribute of Python's, no macros, imports or assignments. What it makes is bounded in size, on
the way there too, and so are the rounds of its loops and its time, because plans can come with requests. A name that is not there
is an error, never a blank, and text that is no number is not 0. Words about a mistake never quote what the template was filled in
with: they are kept where prompts and answers are not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from functools import lru_cache
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import do_round, do_tojson, make_attrgetter, sync_do_sum
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.errors import HeadgateError

NAMES = frozenset({"input", "messages", "outputs", "context", "metadata", "session_id"})
"""What a template may name."""

OUTPUTS = "outputs"

MAX_CHARS = 1 << 20
MAX_ROUNDS = 100_000
MAX_WORK = 16 * MAX_CHARS
"""Characters and items that may be made on the way: what a filter gives to the next is not in the result, and is in memory."""

MAX_DEPTH = 64
"""Python, which templates are compiled to, has a limit of its own, and says so less kindly."""

MAX_S = 0.5
"""How long filling in may take; looked at in each round of a loop, and between the pieces of the text."""

_REMEMBERED_CHARS = 4096
_MAX_BITS = 4096
_MAX_DIGITS = 15

_FILTERS = frozenset(
    {"abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last", "length"}
    | {"list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "select", "selectattr"}
    | {"sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount"}
)
_LOOPS = frozenset({"join", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "sum", "unique"})
"""Filters that go through all that they are given."""

_METHODS = frozenset(
    {"endswith", "find", "get", "items", "keys", "lower", "lstrip", "rstrip", "split", "splitlines", "startswith", "strip"}
    | {"title", "upper", "values"}
)
_LOOP = frozenset({"first", "index", "index0", "last", "length", "revindex"})
_STATEMENTS = (nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Expr, nodes.Helper)
_USED = "_used"
_BOUNDED = "_bounded"
_QUOTED = re.compile(r"'([^']*)'|\"([^\"]*)\"")
_TYPES = frozenset({"bool", "dict", "float", "int", "list", "None", "NoneType", "str", "tuple"})


class TemplateFailed(HeadgateError):
    """A template of the plan could not be filled in."""

    code = "template_failed"


class TemplateInvalid(ValueError):
    """What is wrong with a template's text. Its words are for whoever wrote it."""


class _Used:
    """What is left of what one template may use."""

    def __init__(self) -> None:
        self.rounds = MAX_ROUNDS
        self.work = MAX_WORK
        self._late = time.monotonic() + MAX_S

    def look(self) -> None:
        if time.monotonic() > self._late:
            raise SecurityError(f"it takes longer than {MAX_S} s")

    def make(self, size: int) -> None:
        self.work -= size
        if self.work < 0:
            raise SecurityError("it makes too much on the way")


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = _LOOP if isinstance(obj, LoopContext) else _METHODS
        return attr in allowed and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Jinja would offer `format`, whose widths are as large as one likes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A key before a method: an output may be called `items`."""
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or (not numbers and operator != "+"):
            raise SecurityError(f"'{operator}' is for numbers" if operator != "**" else "there is no '**'")
        if numbers and any(isinstance(side, int) and side.bit_length() > _MAX_BITS for side in (left, right)):
            raise SecurityError("it reckons with too large a number")
        return _made(context, super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, *args: Any, **named: Any) -> Any:
        return _made(context, super().call(context, function, *args, **named))


def _made(context: Context, value: Any) -> Any:
    """`value`, which was just made."""
    if isinstance(value, Sized):
        context[_USED].make(len(value))
    return value


@pass_context
def _bounded(context: Context, values: Iterable[Any]) -> Iterator[Any]:
    used: _Used = context[_USED]
    for value in values:
        used.rounds -= 1
        if used.rounds < 0:
            raise SecurityError(f"its loops take more than {MAX_ROUNDS} rounds")
        used.look()
        yield value


@pass_context
def _replace(context: Context, text: str, old: str, new: str) -> str:
    text, old, new = str(text), str(old), str(new)
    context[_USED].make(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


@pass_context
def _join(context: Context, values: Iterable[Any], between: str = "", attribute: str | int | None = None) -> str:
    between = str(between)
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    parts = []
    for value in values:
        parts.append(str(value))
        context[_USED].make(len(parts[-1]) + len(between))
    return between.join(parts)


_NO_DEFAULT = object()


def _int(value: Any, default: Any = _NO_DEFAULT) -> Any:
    """Jinja's own takes whatever is no number for 0."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return _instead(default)


def _float(value: Any, default: Any = _NO_DEFAULT) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return _instead(default)


def _instead(default: Any) -> Any:
    if default is _NO_DEFAULT:
        raise SecurityError("it takes something for a number that is none")
    return default


def _round(value: float, precision: int = 0, method: Literal["common", "ceil", "floor"] = "common") -> float:
    if abs(precision) > _MAX_DIGITS:
        raise SecurityError("it rounds to too many digits")
    return do_round(value, precision, method)


@pass_context
def _sum(context: Context, values: Iterable[Any], attribute: str | int | None = None, start: float = 0) -> Any:
    if not isinstance(start, int | float):
        raise SecurityError("'sum' is for numbers")
    return sync_do_sum(context.environment, values, attribute, start)


@pass_context
def _tojson(context: Context, value: Any) -> Any:
    return do_tojson(context.eval_ctx, value)


def _counted(name: str, filter: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, with what it goes through and what it makes counted."""
    wants = getattr(getattr(filter, "jinja_pass_arg", None), "name", None)

    @pass_context
    def counted(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        given = _bounded(context, value) if name in _LOOPS else value
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        return _made(context, filter(*([first[wants]] if wants else []), given, *args, **named))

    return counted


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters = {name: value for name, value in environment.filters.items() if name in _FILTERS}
    environment.filters |= {
        "replace": _replace,
        "join": _join,
        "int": _int,
        "float": _float,
        "round": _round,
        "sum": _sum,
        "tojson": _tojson,
        "lines": str.splitlines,
    }
    environment.filters = {name: _counted(name, filter) for name, filter in environment.filters.items()} | {_BOUNDED: _bounded}
    environment.globals = {}
    return environment


_ENVIRONMENT = _environment()


def is_template(text: str) -> bool:
    return "{{" in text or "{%" in text or "{#" in text


def render(text: str, names: Mapping[str, Any]) -> str:
    """The text with everything filled in. Raises TemplateFailed."""
    if not is_template(text):
        return text
    used, parts, size = _Used(), list[str](), 0
    try:
        for part in _template(text).generate({**names, _USED: used}):
            used.look()
            size += len(part)
            if size > MAX_CHARS:
                raise SecurityError("it makes too much text")
            parts.append(part)
    except _MISTAKES as error:
        raise TemplateFailed(f"A template of the plan could not be filled in: {_why(error, text)}") from error
    return "".join(parts)


def evaluate(expression: str, names: Mapping[str, Any]) -> bool:
    """Whether the expression is true. Raises TemplateFailed if it cannot be said."""
    try:
        value = getattr(_condition(expression).make_module({**names, _USED: _Used()}), "result", None)
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()
        return bool(value)
    except _MISTAKES as error:
        raise TemplateFailed(f"The condition '{expression[:200]}' has no value: {_why(error, expression)}") from error


def check_template(text: str) -> frozenset[str]:
    """The outputs that a template names. Raises TemplateInvalid."""
    if not is_template(text):
        return frozenset()
    _template(text)
    return _references(_parse(text))


def check_expression(text: str) -> frozenset[str]:
    """The outputs that an expression names. Raises TemplateInvalid."""
    _condition(text)
    return _references(_parse(_output(text)))


_MISTAKES = (
    *(TemplateError, TemplateInvalid, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError),
    *(AssertionError, MemoryError, SyntaxError),
    NameError,  # infinity is compiled to a name
)
"""What a template can do wrong while it is filled in."""


_UNREADABLE = (ValueError, SyntaxError, RecursionError, MemoryError, AssertionError)
"""What Python has to say about text that is nested too deeply, or has numbers that are too long."""


def _template(text: str) -> Template:
    """What is long is read each time: what is remembered may come from anybody, and takes many times its length."""
    return _remembered(text) if len(text) <= _REMEMBERED_CHARS else _read(text)


def _read(text: str) -> Template:
    tree = _parse(text)
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = nodes.Filter(loop.iter, _BOUNDED, [], [], None, None, lineno=loop.lineno)
    return _compiled(tree, "template")


_remembered = lru_cache(maxsize=256)(_read)


@lru_cache(maxsize=256)
def _condition(text: str) -> Template:
    """A template that keeps the value of the expression as its `result`."""
    tree = _parse(_output(text), "expression")
    output = tree.body[0] if len(tree.body) == 1 else None
    if not isinstance(output, nodes.Output) or len(output.nodes) != 1 or isinstance(output.nodes[0], nodes.TemplateData):
        raise TemplateInvalid("is no expression")
    module = nodes.Template([nodes.Assign(nodes.Name("result", "store", lineno=1), output.nodes[0], lineno=1)], lineno=1)
    module.set_environment(_ENVIRONMENT)
    return _compiled(module, "expression")


def _output(expression: str) -> str:
    """With spaces: a sign next to the braces is not part of what they hold."""
    return "{{ " + expression + " }}"


def _parse(text: str, kind: str = "template") -> nodes.Template:
    try:
        tree = _ENVIRONMENT.parse(text)
    except TemplateSyntaxError as error:
        raise TemplateInvalid(f"is no {kind}: {error.message}") from None
    except RecursionError:
        raise TemplateInvalid("is nested too deeply") from None
    except _UNREADABLE:
        raise TemplateInvalid(f"is no {kind}: it cannot be read") from None
    _check(tree)
    return tree


def _compiled(tree: nodes.Template, kind: str) -> Template:
    try:
        return _ENVIRONMENT.from_string(tree)
    except TemplateError as error:
        raise TemplateInvalid(f"is no {kind}: {error.message}") from None
    except _UNREADABLE:
        raise TemplateInvalid(f"is no {kind}: it cannot be read") from None


def _check(tree: nodes.Template) -> None:
    if _deeper_than(tree, MAX_DEPTH):
        raise TemplateInvalid("is nested too deeply")
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.Stmt) and not isinstance(node, _STATEMENTS):
            raise TemplateInvalid(f"uses '{type(node).__name__.lower()}'; only output, if and for are allowed")
        if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            raise TemplateInvalid(f"names '{node.attr}', which there is not")
        if isinstance(node, nodes.For) and node.recursive:
            raise TemplateInvalid("uses a recursive loop")
        if isinstance(node, nodes.Concat):
            raise TemplateInvalid("uses '~'; write two outputs side by side instead")
        if isinstance(node, nodes.Filter) and (node.name not in _ENVIRONMENT.filters or node.name == _BOUNDED):
            raise TemplateInvalid(f"uses the filter '{node.name}', which there is not")
    bound = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"} | {"loop"}
    for node in tree.find_all(nodes.Name):
        if node.ctx == "load" and node.name not in NAMES and node.name not in bound:
            raise TemplateInvalid(f"names '{node.name}', which there is not (there are {', '.join(sorted(NAMES))})")


def _deeper_than(tree: nodes.Node, levels: int) -> bool:
    level: list[nodes.Node] = [tree]
    for _ in range(levels):
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return False
    return True


def _references(tree: nodes.Template) -> frozenset[str]:
    found: set[str] = set()
    for node in tree.find_all((nodes.Getattr, nodes.Getitem)):
        if not isinstance(node.node, nodes.Name) or node.node.name != OUTPUTS:  # type: ignore[attr-defined]
            continue
        if isinstance(node, nodes.Getattr):
            found.add(node.attr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            found.add(str(node.arg.value))
    return frozenset(found)


def _why(error: BaseException, text: str) -> str:
    """The words of a mistake, if all that they quote is in the template's own text."""
    words = str(error)[:300]
    quoted = [single or double for single, double in _QUOTED.findall(words)]
    if words and all(part in text or part in _TYPES or part.endswith(" object") for part in quoted):
        return words
    return f"{type(error).__name__} about a value that it was given"
