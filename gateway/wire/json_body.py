"""Strict JSON from a client: a dictionary that everything behind the door can store, forward and encode again, or InvalidRequest.

Refused besides what is not JSON (invalid UTF-8 and lone surrogates included): NUL in any string, which PostgreSQL cannot hold;
nesting deeper than `MAX_DEPTH`, which encoders meet with a RecursionError; numbers out of range; bodies that are not an object.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from orchestrator.errors import InvalidRequest
from orchestrator.nesting import MAX_DEPTH, nested_deeper

_decode = msgspec.json.Decoder().decode
_Path = tuple[str | int, ...]


def parse_object(raw: bytes) -> dict[str, Any]:
    """Raises InvalidRequest and nothing else."""
    try:
        value = _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and nested_deeper(value):
        raise _too_deep()
    if b"\\u0000" in raw:
        _check_nul(value)
    return value


def place(path: Iterable[str | int]) -> str:
    """A path the way OpenAI writes `param`: `messages[0].content`. Keys may be a client's own, so they are cut to a length."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:100]}" if text else part[:100]
    return text


def _check_nul(value: object) -> None:
    todo: list[tuple[_Path, object]] = [((), value)]
    while todo:
        path, current = todo.pop()
        if isinstance(current, str) and "\0" in current:
            raise _nul(path)
        if isinstance(current, dict):
            if any("\0" in key for key in current):
                raise _nul(path)
            todo += [((*path, key), child) for key, child in current.items()]
        elif isinstance(current, list):
            todo += [((*path, index), child) for index, child in enumerate(current)]


def _nul(path: _Path) -> InvalidRequest:
    where = place(path)
    message = f"Invalid value for '{where}': it contains a NUL character." if where else "A key contains a NUL character."
    return InvalidRequest(message, param=where or None, code="invalid_value")


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")
