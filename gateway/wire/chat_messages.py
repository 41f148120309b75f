"""Whether a request's messages are messages. Written by hand, because every request passes here and `param` must be exact.

Checked: what every upstream would choke on or silently misread. Not checked: what only the model can judge, such as which tool
a `tool_call_id` answers. Unknown keys and unknown types of content parts pass; the upstream may know them.
"""

from __future__ import annotations

from typing import Any, NoReturn

from gateway.wire.json_body import place
from orchestrator.errors import InvalidRequest

Json = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def _shape(names: list[str], needed: Json, more: Json | None = None, kind: str = "role") -> Json:
    """A schema of objects whose `kind` is one of `names`, with the keys that they need and those that they may have."""
    properties = {**(more or {}), **needed, kind: {"enum": names}}
    return {"type": "object", "required": [kind, *needed], "properties": properties}


_PARTS: dict[str, tuple[str, type]] = {
    "text": ("text", str),
    "refusal": ("refusal", str),
    "image_url": ("image_url", dict),
    "input_audio": ("input_audio", dict),
    "file": ("file", dict),
}
"""Types of content parts that are known, with the key that each must have."""

_STRING: Json = {"type": "string"}
_MAYBE_STRING: Json = {"type": ["string", "null"]}
_SCHEMAS: dict[type, Json] = {str: _STRING, dict: {"type": "object"}}

_PART = {
    "anyOf": [
        *(_shape([kind], {key: _SCHEMAS[wanted]}, kind="type") for kind, (key, wanted) in _PARTS.items()),
        {"type": "object", "required": ["type"], "properties": {"type": {**_STRING, "not": {"enum": list(_PARTS)}}}},
    ]
}
_CONTENT = {"anyOf": [_STRING, {"type": "array", "items": _PART}], "description": "Text, or parts."}
_FUNCTION = {"type": "object", "required": ["name"], "properties": {"name": _STRING, "arguments": _MAYBE_STRING}}
_CALL = {"type": "object", "properties": {"function": {"anyOf": [_FUNCTION, {"type": "null"}]}}}
_MORE = {
    "name": _MAYBE_STRING,
    "refusal": _MAYBE_STRING,
    "tool_calls": {"type": ["array", "null"], "items": _CALL},
    "function_call": {"anyOf": [_FUNCTION, {"type": "null"}]},
}
_SAID = {"tool_calls": {"type": "array", "items": _CALL}, "refusal": _STRING, "function_call": _FUNCTION}

MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            _shape(["system", "developer", "user", "assistant"], {"content": _CONTENT}, _MORE),
            *(_shape(["assistant"], {key: shape}, _MORE) for key, shape in _SAID.items()),
            _shape(["tool"], {"content": _CONTENT, "tool_call_id": _STRING}, _MORE),
            _shape(["function"], {"name": _STRING}, {**_MORE, "content": {"anyOf": [_CONTENT, {"type": "null"}]}}),
        ]
    },
}
"""The same rules as a JSON schema, for the description of the API."""

_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "a boolean", list: "an array", dict: "an object"}


def check_messages(messages: object) -> None:
    """Raises InvalidRequest that names the place."""
    if not isinstance(messages, list):
        _wrong(messages, "an array of messages", "messages")
    if not messages:
        raise InvalidRequest("'messages' must have at least one message.", param="messages", code="empty_array")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            _wrong(message, "an object", "messages", index)
        role = message.get("role")
        if role not in ROLES:
            _bad_role(message, index)
        content = message.get("content")
        if not isinstance(content, str):
            _check_content(message, role, content, index)
        if len(message) > 2 or "content" not in message or role in ("tool", "function"):
            _check_rest(message, role, index)


def _check_content(message: dict[str, Any], role: str, content: object, index: int) -> None:
    if isinstance(content, list):
        for number, part in enumerate(content):
            _check_part(part, index, number)
    elif content is not None:
        _wrong(content, "a string or an array of content parts", "messages", index, "content")
    elif role == "assistant" and any(message[key] is not None for key in message.keys() - {"role", "content", "name"}):
        return  # tool calls, a refusal, audio, or something that this upstream knows
    elif role == "function":
        return
    elif "content" in message:
        _wrong(content, "a string or an array of content parts", "messages", index, "content")
    else:
        _missing("messages", index, "content")


def _check_part(part: object, index: int, number: int) -> None:
    where = ("messages", index, "content", number)
    if not isinstance(part, dict):
        _wrong(part, "an object", *where)
    kind = _need(part, "type", str, *where)
    if kind in _PARTS:
        key, wanted = _PARTS[kind]
        _need(part, key, wanted, *where)


def _check_rest(message: dict[str, Any], role: str, index: int) -> None:
    if role == "tool":
        _need(message, "tool_call_id", str, "messages", index)
    if role == "function" or message.get("name") is not None:
        _need(message, "name", str, "messages", index)
    if message.get("refusal") is not None:
        _need(message, "refusal", str, "messages", index)
    if message.get("function_call") is not None:
        _check_function(_need(message, "function_call", dict, "messages", index), "messages", index, "function_call")
    if message.get("tool_calls") is not None:
        for number, call in enumerate(_need(message, "tool_calls", list, "messages", index)):
            where = ("messages", index, "tool_calls", number)
            if not isinstance(call, dict):
                _wrong(call, "an object", *where)
            if call.get("function") is not None:
                _check_function(_need(call, "function", dict, *where), *where, "function")


def _check_function(function: dict[str, Any], *where: str | int) -> None:
    _need(function, "name", str, *where)
    if function.get("arguments") is not None:
        _need(function, "arguments", str, *where)


def _bad_role(message: dict[str, Any], index: int) -> NoReturn:
    role = _need(message, "role", str, "messages", index)
    raise InvalidRequest(
        f"Invalid value: '{role[:100]}'. Supported values are: {', '.join(repr(known) for known in ROLES)}.",
        param=place(("messages", index, "role")),
        code="invalid_value",
    )


def _need(holder: dict[str, Any], key: str, wanted: type, *where: str | int) -> Any:
    if key not in holder:
        _missing(*where, key)
    value = holder[key]
    if not isinstance(value, wanted):
        _wrong(value, _NAMES[wanted], *where, key)
    return value


def _missing(*where: str | int) -> NoReturn:
    param = place(where)
    raise InvalidRequest(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _wrong(value: object, wanted: str, *where: str | int) -> NoReturn:
    param = place(where)
    got = "null" if value is None else _NAMES[type(value)]
    message = f"Invalid type for '{param}': expected {wanted}, but got {got} instead."
    raise InvalidRequest(message, param=param, code="invalid_type")
