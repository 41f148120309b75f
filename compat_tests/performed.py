"""Golden runs, performed once for all tests that look at them: what the chat door said, and what stands in the log.

`told` and `logged` bring both to one form. Where they are equal, the doors told the same story.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from compat_tests.doors import Event, Server
from compat_tests.goldens import GOLDENS, UNANSWERED, Golden
from compat_tests.raw import CHAT, Answer, ask, headers_of, take_frames
from tests.wire.eventstream import read

RUNS = {name: run for name, run in GOLDENS.items() if name not in ("padded", "events")} | UNANSWERED
"""Without those that differ in what the chat door adds."""

_IDS = {"X-Headgate-Stream-Ids": "true"}


class Performed(NamedTuple):
    run: str
    chat: Answer
    """A stream with positions; an HTTP error if the run failed before its first word."""
    log: Sequence[Event]


def perform(server: Server, model: str, name: str) -> Performed:
    golden = RUNS[name]
    if name == "cancelled":
        chat = _cancelled(server, model, golden)
    else:
        asked = "hasty" if name == "timed out" else model
        chat = server.raw.chat(asked, golden.prompt, headers=_IDS, **golden.fields)
    return Performed(chat.run, chat, server.log(chat.run))


def _cancelled(server: Server, model: str, golden: Golden) -> Answer:
    with server.raw.open("POST", CHAT, ask(model, golden.prompt, stream=True), _IDS) as response:
        headers = headers_of(response)
        begun = take_frames(response, 3)
        assert server.raw.cancel(headers["x-workflow-id"]).status == 200
        return Answer(response.status, headers, b"".join(begun) + response.read())


class Piece(NamedTuple):
    """A delta, whichever door it came through."""

    stream_id: str
    choice: int
    field: str
    value: Any


class Ending(NamedTuple):
    """How a run ended: the finish reason of each choice, or why there is none."""

    reasons: dict[int, str]
    error: str | None


def told(chat: Answer) -> list[Piece]:
    """The deltas of a chat stream, less what only that door says: roles, and reasoning's second name."""
    pieces = []
    for frame in chat.frames if chat.status == 200 else ():
        ((data, _, event_id),) = read(frame)
        for choice in json.loads(data).get("choices", ()) if event_id else ():
            for field, value in choice["delta"].items():
                if field not in ("role", "reasoning_content"):
                    pieces.append(Piece(event_id, choice["index"], field, value))
    return pieces


def logged(log: Iterable[Event]) -> list[Piece]:
    """The deltas of a log, less the name of who says them, which the chat door has in a header."""
    pieces = []
    for event in log:
        if event["type"] == "LLM_PARTIAL":
            payload = event.get("payload", {})
            # To protobuf an empty text is none, so an event that says nothing else is an empty delta.
            payload = {field: value for field, value in payload.items() if field != "upstream"}
            said = {"content": event.get("message", "")} if "message" in event or not payload else {}
            choice = 0
            for field, value in payload.items():
                if field == "choice":
                    choice = value
                else:
                    said[field] = value
            pieces += [Piece(event["stream_id"], choice, field, value) for field, value in said.items()]
    return pieces


def told_ending(chat: Answer) -> Ending:
    if chat.status != 200 or "error" in chat.chunks[-1]:
        return Ending({}, chat.error["code"])
    choices = [choice for chunk in chat.chunks for choice in chunk["choices"]]
    return Ending({choice["index"]: choice["finish_reason"] for choice in choices if choice["finish_reason"]}, None)


def logged_ending(log: Sequence[Event]) -> Ending:
    ending = log[-2]
    match ending["type"]:
        case "WORKFLOW_COMPLETED":
            output = next(event["payload"] for event in log if event["type"] == "LLM_OUTPUT")
            choices = output.get("choices", [{"index": 0, "finish_reason": output["finish_reason"]}])
            return Ending({choice["index"]: choice["finish_reason"] for choice in choices}, None)
        case "WORKFLOW_CANCELLED":
            return Ending({}, "run_cancelled")
    return Ending({}, ending["payload"]["error"]["code"])


def text_of(pieces: Iterable[Piece], field: str = "content", choice: int = 0) -> str:
    return "".join(piece.value for piece in pieces if (piece.field, piece.choice) == (field, choice))


def tool_calls_of(pieces: Iterable[Piece]) -> list[Any]:
    """Whole tool calls, as an SDK puts them together."""
    calls: dict[int, Any] = {}
    for piece in pieces:
        for delta in piece.value if piece.field == "tool_calls" else ():
            call = calls.setdefault(delta["index"], {"id": delta.get("id"), "type": "function", "function": {"arguments": ""}})
            function = delta["function"]
            call["function"] |= {"name": function["name"]} if "name" in function else {}
            call["function"]["arguments"] += function["arguments"]
    return list(calls.values())
