"""Checking a call's arguments before the call is made: JSON, an object, and what the tool's schema says. No I/O.

A schema comes from whoever wrote the tool. It may refer to itself, to nothing else: no reference is ever fetched.
"""

from __future__ import annotations

from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry
from referencing.exceptions import Unresolvable

from orchestrator.tools.tool import InvalidArguments, ToolBroken

MAX_ARGUMENT_BYTES = 256 * 1024
_SAID = 300


class Schema:
    """One tool's. Raises ToolBroken for one that is none."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        kind: type[Validator] = validator_for(parameters, default=Draft202012Validator)
        try:
            kind.check_schema(parameters)
        except SchemaError as error:
            raise ToolBroken(f"Its schema is not a JSON schema: {error.message[:_SAID]}") from None
        except RecursionError:
            raise ToolBroken("Its schema is nested too deeply.") from None
        if parameters.get("type", "object") != "object":
            raise ToolBroken("Its schema is not that of an object.")
        self.parameters = parameters
        self._validator = kind(parameters, registry=Registry())

    def check(self, arguments: dict[str, Any]) -> None:
        """Raises InvalidArguments, with the place of the mistake in words for the model; ToolBroken where no value could fit."""
        try:
            error = best_match(self._validator.iter_errors(arguments))
        except Unresolvable as missing:
            raise ToolBroken(f"Its schema refers to what it does not contain: {missing.ref[:_SAID]}") from None
        except RecursionError:
            raise InvalidArguments("The arguments are nested too deeply.") from None
        if error is not None:
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
            raise InvalidArguments(f"arguments{where}: {error.message[:_SAID]}")


def decoded(arguments: str) -> dict[str, Any]:
    """The object that a model wrote; nothing at all is the empty one. Raises InvalidArguments."""
    if len(arguments) > MAX_ARGUMENT_BYTES:
        raise InvalidArguments(f"The arguments are longer than {MAX_ARGUMENT_BYTES} bytes.")
    if not arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArguments(f"The arguments are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidArguments("The arguments are not a JSON object.")
    return value
