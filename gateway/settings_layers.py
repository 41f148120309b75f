"""Where the configuration's values come from, as plain data: the file, then the environment, then flags.

A string in the file may say `${NAME}` or `${NAME:-default}`; `$${` is a literal `${`. A setting's environment variable is its
path in capitals: `server.port` is `HEADGATE_SERVER__PORT`. A value that begins with `{` or `[` is read as YAML, so a whole
section fits in one variable. Variables whose first word is no section are somebody else's (an orchestrator's
`HEADGATE_PORT=tcp://…`, the client's `HEADGATE_URL`) and ignored, unless they contain `__`. No validation here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from gateway.settings_errors import ConfigError, did_you_mean

PREFIX = "HEADGATE_"
_REFERENCE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Override(NamedTuple):
    """A value that replaces the file's, and what to call its source in a message: a variable's or a flag's name."""

    path: tuple[str, ...]
    value: Any
    origin: str


class _Loader(yaml.SafeLoader):
    """YAML without three of its traps: `off` is a word and not false, and a key given twice is an error, as is an alias inside of
    what it stands for.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # which cannot be a key, and is told so below
            if key_node.value in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"key '{key_node.value}' is given twice", mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def whole_mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node, deep=True)

    def whole_sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return self.construct_sequence(node, deep=True)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.whole_mapping)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.whole_sequence)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """A file's sections; those without content count as absent. Raises ConfigError."""
    data = _parse(text, origin)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError([f"{origin}: should consist of sections such as `server:`"])
    return {str(key): value for key, value in data.items() if value is not None}


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark else origin
        raise ConfigError([f"{place}: {error.problem or error.context}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{origin}: {error}"]) from None
    except RecursionError:
        raise ConfigError([f"{origin}: is nested too deeply"]) from None
    except (ValueError, AttributeError) as error:  # PyYAML's own, of what looks like a date or a number and is none
        raise ConfigError([f"{origin}: a value cannot be read as what it looks like: {error}; put it in quotes"]) from None


def interpolate(data: dict[str, Any], environ: Mapping[str, str], origin: str) -> dict[str, Any]:
    """The data with every `${NAME}` in its string values replaced. Raises ConfigError with all names that are not set."""
    unset: list[str] = []

    def replaced(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()}
        if isinstance(value, list):
            return [replaced(item, f"{path}.{number}") for number, item in enumerate(value)]
        if isinstance(value, str):
            return _REFERENCE.sub(lambda match: looked_up(match, path), value)
        return value

    def looked_up(match: re.Match[str], path: str) -> str:
        escaped, name, default = match.groups()
        if escaped:
            return "${"
        # As in a shell, `:-` also stands in for a variable that is set to nothing.
        found = environ.get(name) or default if default is not None else environ.get(name)
        if found is None:
            unset.append(f"{origin}: {path}: environment variable {name} is not set (a default would be ${{{name}:-…}})")
        return found or ""

    result: dict[str, Any] = replaced(data, "")
    if unset:
        raise ConfigError(unset)
    return result


def from_environment(environ: Mapping[str, str], sections: Collection[str]) -> list[Override]:
    """The overrides that the environment holds, whole sections before their parts. Raises ConfigError."""
    overrides = []
    for name, text in sorted(environ.items(), key=lambda item: (item[0].count("__"), item[0])):
        if not name.startswith(PREFIX):
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if path[0] in sections:
            overrides.append(Override(path, _parse(text, name) if text.startswith(("{", "[")) else text, name))
        elif len(path) > 1:
            raise ConfigError([f"{name}: there is no section '{path[0]}'{did_you_mean(path[0], sections)}"])
    return overrides


def overlay(data: Mapping[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """The data with the overrides put in, in their order."""
    result = dict(data)
    for path, value, _ in overrides:
        place = result
        for part in path[:-1]:
            key = _existing(place, part)
            inner = place.get(key)
            place[key] = dict(inner) if isinstance(inner, dict) else {}
            place = place[key]
        place[_existing(place, path[-1])] = value
    return result


def source_of(path: Sequence[str], origin: str, overrides: Sequence[Override]) -> str:
    """What the value at `path` was last set by: an override, or else `origin`."""
    written = [_spelled(part) for part in path]
    for override in overrides:
        if written[: len(override.path)] == [_spelled(part) for part in override.path]:
            origin = override.origin
    return origin


def _existing(place: Mapping[str, Any], part: str) -> str:
    """The key that `part` means: variables cannot spell capitals and hyphens, names of upstreams and models have them."""
    for key in place:
        if _spelled(key) == _spelled(part):
            return key
    return part


def _spelled(key: str) -> str:
    return key.lower().replace("-", "_")
