"""Mistakes in the configuration, told to the person who made them: where, what, and what may have been meant.

Turns pydantic's errors into lines such as `config.yaml: models.foo.plan.agent: unknown key 'upstrem' (did you mean
'upstream'?)`. Values never appear in a line: any of them may be a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails


class ConfigError(Exception):
    """The configuration is not valid. `lines` says why, one mistake each."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines)
        super().__init__("\n".join(self.lines))


Problem = tuple[tuple[str, ...], str]
"""The path of a value that is valid by itself but not beside the others, and what is wrong with it."""


class Inconsistent(ValueError):
    """Values that do not fit together. A ValueError, because that is what a pydantic validator may raise."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{'.'.join(path)}: {text}" for path, text in problems))


def did_you_mean(word: str, known: Collection[str]) -> str:
    """` (did you mean 'x'?)`, or what there is if nothing is close, or nothing."""
    if close := difflib.get_close_matches(word, known, n=1):
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""


def explain(
    error: ValidationError, data: Mapping[str, Any], schema: Mapping[str, Any], source: Callable[[Sequence[str]], str]
) -> list[str]:
    """One line per mistake. `schema` is the JSON schema of what `data` should be; `source` says what set the value at a path."""
    lines: dict[str, None] = {}  # a set that keeps its order: members of a union may say the same thing twice
    for details in error.errors(include_url=False, include_input=False):
        for path, text in _problems(details, data, schema):
            origin = source(path)
            shown = path[:-1] if details["type"] == "extra_forbidden" else path
            if origin.startswith("--"):  # says it all, also where one flag sets several values
                shown = ()
            lines[": ".join(part for part in (origin, ".".join(shown), text) if part)] = None
    return list(lines)


_PLAIN: Mapping[str, str] = {
    "bool_parsing": "should be true or false",
    "int_parsing": "should be a whole number",
    "float_parsing": "should be a number",
    "byte_size": "should be a size such as 65536 or 64KiB",
    "byte_size_unit": "should be a size such as 65536 or 64KiB",
    "tuple_type": "should be a list",
}
"""Where pydantic speaks of Python."""


def _problems(details: ErrorDetails, data: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Problem]:
    context = details.get("ctx", {})
    if isinstance(inconsistent := context.get("error"), Inconsistent):
        yield from inconsistent.problems
        return
    path = _written(details, data)
    match details["type"]:
        case "extra_forbidden":
            text = f"unknown key '{path[-1]}'{_meant(path[-1], path[:-1], schema)}"
        case "missing":
            text = "is missing"
        case "union_tag_not_found":
            text = f"needs {context['discriminator']}"
        case "union_tag_invalid":
            text = f"{context['discriminator']} should be one of {context['expected_tags']}"
        case kind:
            text = _PLAIN.get(kind) or details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    yield tuple(path), text


def _written(details: ErrorDetails, data: Any) -> list[str]:
    """The error's path as the user wrote it: without the tags that pydantic adds for members of a union."""
    path = []
    for number, part in enumerate(details["loc"]):
        last = number == len(details["loc"]) - 1
        listed = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if listed or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif not (last and details["type"] == "missing"):
            continue
        path.append(str(part))
    return path


def _meant(key: str, path: Sequence[str], schema: Mapping[str, Any]) -> str:
    places = [schema]
    for part in path:
        places = [inner for place in places for inner in _inside(place, part, schema)]
    known = {name for place in places for name in place.get("properties", {})}
    return did_you_mean(key, known)


def _inside(place: Mapping[str, Any], part: str, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every object schema that the value under `part` may have to satisfy."""
    inner = place.get("properties", {}).get(part) or place.get("additionalProperties") or place.get("items")
    if isinstance(inner, Mapping):
        yield from _alternatives(inner, schema)


def _alternatives(place: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if reference := place.get("$ref"):
        place = schema["$defs"][str(reference).rpartition("/")[2]]
    members = place.get("anyOf") or place.get("oneOf")
    if members is None:
        yield place
    for member in members or ():
        yield from _alternatives(member, schema)
