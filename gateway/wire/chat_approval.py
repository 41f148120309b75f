"""Approvals in the words of chat completions: a call of a tool that the client did not bring, and its result.

A run that waits for a decision ends its turn with the tool call `request_approval`. Whoever sends the conversation back with the
result of that call decides, and the answer is the same run's, going on. The id of the call names the run and the approval, so
nothing has to be remembered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from orchestrator.engine import Decision
from orchestrator.errors import InvalidRequest

TOOL = "request_approval"
MAX_WORDS = 10_000

_CALL_ID = re.compile(r"call_([0-9a-f]{32})_([^\s]{1,500})")
_YES = frozenset({"approve", "approved", "yes", "y", "true", "ok", "okay", "1"})
_NO = frozenset({"deny", "denied", "no", "n", "false", "reject", "rejected", "0"})
_HOW = 'The result of request_approval is {"approved": true} or {"approved": false, "feedback": "why"}, or just yes or no.'


class Decided(msgspec.Struct, frozen=True):
    """What a client says about the approval that a run waits for."""

    run_id: str
    decision: Decision


def call_of(run_id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The tool call that asks for the decision which an APPROVAL_REQUESTED wants."""
    approval_id = str(payload.get("approval_id", ""))
    asked = {key: payload.get(key) for key in ("approval_id", "proposed_action", "reason", "expires_at")}
    arguments = msgspec.json.encode({key: value for key, value in asked.items() if value is not None}).decode()
    call_id = f"call_{run_id.removeprefix('task-')}_{quote(approval_id, safe='')}"
    return {"id": call_id, "type": "function", "function": {"name": TOOL, "arguments": arguments}}


def decided(messages: Sequence[Mapping[str, Any]]) -> Decided | None:
    """The decision that a conversation ends with. Raises InvalidRequest where it cannot be understood."""
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if message.get("role") != "tool":
            return None
        if match := _CALL_ID.fullmatch(str(message.get("tool_call_id", ""))):
            said = _verdict(_text(message.get("content")), f"messages[{place}].content")
            return Decided(f"task-{match[1]}", Decision(approval_id=unquote(match[2]), **said))
    return None


def _verdict(text: str, param: str) -> dict[str, Any]:
    """The fields of a decision."""
    try:
        said = msgspec.json.decode(text)
    except msgspec.DecodeError:
        said = text
    word = str(said).strip().strip(".!").lower()
    match said:
        case bool():
            return {"approved": said}
        case {"approved": bool() as approved}:
            words = {name: said.get(name) for name in ("feedback", "modified_action")}
            if any(isinstance(each, str) and len(each) > MAX_WORDS for each in words.values()):
                raise InvalidRequest(f"'feedback' and 'modified_action' have at most {MAX_WORDS} characters.", param=param)
            return {"approved": approved, **{name: each for name, each in words.items() if isinstance(each, str)}}
        case str() | int() if word in _YES | _NO:
            return {"approved": word in _YES}
        case _:
            raise InvalidRequest(_HOW, param=param)


def _text(content: object) -> str:
    """A message's text, whether it is one or comes in parts."""
    parts: list[Any] = content if isinstance(content, list) else [{"text": content}]
    return "".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
