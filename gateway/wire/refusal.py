"""What pydantic has against a request, as one sentence for the person who wrote the request.

The first complaint only, in OpenAI's words as far as they are known, naming its place the way OpenAI does (`tools[0].function`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.wire.json_body import place
from orchestrator.errors import InvalidRequest


def refusal(asked: Mapping[str, Any], error: ValidationError) -> InvalidRequest:
    """`asked` is what was validated: a JSON object, or the parameters of a query.

    A value that fits no member of a union is complained about once per member: the deepest place is the one that was meant,
    and all that is said about it is one complaint.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    about = [(_path(asked, each), each) for each in details if each["loc"][:1] == details[0]["loc"][:1]]
    path, first = max(about, key=lambda complaint: len(complaint[0]))
    wanted = dict.fromkeys(_said(each) for where, each in about if where == path)
    param = place(path)
    match first["type"]:
        case "missing":
            message, code = f"Missing required parameter: '{param}'.", "missing_required_parameter"
        case "extra_forbidden":
            message, code = f"Unknown parameter: '{param}'.", "unknown_parameter"
        case kind:
            code = "invalid_type" if kind.endswith("_type") else "invalid_value"
            message = f"Invalid value for '{param}': it should be {' or '.join(wanted)}."
    return InvalidRequest(message.replace("a valid dictionary", "an object"), param=param, code=code)


def _said(each: ErrorDetails) -> str:
    return each["msg"].removeprefix("Value error, ").removeprefix("Input should be ")


def _path(asked: Mapping[str, Any], error: ErrorDetails) -> list[str | int]:
    """Where in the request the complaint is. pydantic also names the members of unions that it tried; those are not places."""
    path: list[str | int] = []
    current: Any = asked
    for part in error["loc"]:
        inside = part in current if isinstance(current, Mapping) else isinstance(current, list) and isinstance(part, int)
        if inside:
            current = current[part]
        if inside or error["type"] == "missing":
            path.append(part)
    return path
