"""The judge of chat streams: what clients punish (openai.md, section 1), as complaints about a body of bytes.

`test_rules.py` shows it every kind of bad stream, so that its silence means something.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.wire.eventstream import read

FINISHES = ("stop", "length", "tool_calls", "content_filter", "function_call")
_LINE = re.compile(rb"(data: [^\n]+|id: [0-9]+-[0-9]+|: keepalive|)\n")
_CHUNK_KEYS = {"id", "object", "created", "model", "choices"}
_EXTRAS = {"usage", "headgate_events", "headgate_keepalive", "obfuscation"}


class Asked(NamedTuple):
    """What the request asked for, as far as it decides how the stream must look."""

    usage: bool = False
    ids: bool = False
    choices: int = 1


PLAIN = Asked()


def complaints(body: bytes, asked: Asked = PLAIN) -> list[str]:
    """What is wrong with a stream; nothing, hopefully."""
    return list(dict.fromkeys((*_framing(body, asked), *_content(body, asked))))


def _framing(body: bytes, asked: Asked) -> Iterator[str]:
    try:
        events = read(body)
    except UnicodeDecodeError:
        yield "not UTF-8"
        return
    if events != read(body, splitlines=True):
        yield "reads differently where lines are split as Python does"
    if _LINE.sub(b"", body):
        yield "lines other than data, id and keepalive"
    if b": keepalive\n\n" in body:
        yield "a comment with a blank line of its own"
    if body and not body.endswith(b"\n\n"):
        yield "ends within an event"
    if any(event.event for event in events):
        yield "event names"
    if b"\nid:" in b"\n" + body and not asked.ids:
        yield "ids that nobody asked for"
    if b"\nid:" not in b"\n" + body and asked.ids:
        yield "no ids"


def _content(body: bytes, asked: Asked) -> Iterator[str]:
    data = [event.data for event in read(body)] if _decodes(body) else []
    done = data.count("[DONE]")
    failed = bool(data) and "error" in _json(data[-1])
    if done + failed != 1 or (done and data[-1] != "[DONE]"):
        yield "does not end with exactly one of [DONE] and an error"
    chunks = [_json(each) for each in data if each != "[DONE]"]
    if failed:
        yield from _error(chunks.pop())
    if any("error" in chunk for chunk in chunks):
        yield "an error that is not the end"
    chunks = [chunk for chunk in chunks if "error" not in chunk]
    yield from _heads(chunks)
    yield from _usage(chunks, asked, failed)
    yield from _choices(chunks, asked, failed)


def _error(event: dict[str, Any]) -> Iterator[str]:
    if event.keys() != {"error"} or event["error"].keys() != {"message", "type", "param", "code"}:
        yield "an error event of another shape"


def _heads(chunks: list[dict[str, Any]]) -> Iterator[str]:
    if len({(chunk.get("id"), chunk.get("created"), chunk.get("model")) for chunk in chunks}) > 1:
        yield "id, created or model change"
    for chunk in chunks:
        if not chunk.keys() >= _CHUNK_KEYS or chunk.keys() - _CHUNK_KEYS - _EXTRAS:
            yield "a chunk with other keys"
        if chunk.get("object") != "chat.completion.chunk":
            yield "object is not chat.completion.chunk"
        if not str(chunk.get("id")).startswith("chatcmpl-"):
            yield "id does not begin with chatcmpl-"


def _usage(chunks: list[dict[str, Any]], asked: Asked, failed: bool) -> Iterator[str]:
    if not asked.usage:
        if any("usage" in chunk for chunk in chunks):
            yield "usage that nobody asked for"
        if any(not chunk.get("choices") for chunk in chunks):
            yield "a chunk without choices"
        return
    given = [bool(chunk.get("usage")) for chunk in chunks]
    if given != [False] * len(given) if failed else given != [False] * (len(given) - 1) + [True]:
        yield "usage is not in exactly the last chunk"
    if any("usage" not in chunk for chunk in chunks):
        yield "a chunk without usage: null"
    if any(bool(chunk.get("choices")) is bool(chunk.get("usage")) for chunk in chunks):
        yield "choices beside usage, or neither"


def _choices(chunks: list[dict[str, Any]], asked: Asked, failed: bool) -> Iterator[str]:
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if any(choice.keys() != {"index", "delta", "finish_reason", "logprobs"} for choice in choices):
        yield "a choice with other keys"
    if any(not isinstance(choice.get("delta"), dict) for choice in choices):
        yield "a delta that is no object"
        return
    seen = list(dict.fromkeys(choice["index"] for choice in choices))
    if seen != list(range(len(seen))) or (not failed and len(seen) != asked.choices):
        yield "choices are missing or out of order"
    for index in seen:
        yield from _choice([choice for choice in choices if choice["index"] == index], failed)


def _choice(choices: list[dict[str, Any]], failed: bool) -> Iterator[str]:
    roles = [choice["delta"].get("role") for choice in choices]
    if roles != ["assistant"] + [None] * (len(roles) - 1):
        yield "the role is not in exactly the first chunk"
    reasons = [choice["finish_reason"] for choice in choices]
    if failed:
        if any(reasons):
            yield "a finish reason before an error"
    elif reasons[:-1] != [None] * (len(reasons) - 1) or reasons[-1] not in FINISHES:
        yield "not one finish reason, at the end"
    tools = [choice["delta"]["tool_calls"] for choice in choices if "tool_calls" in choice["delta"]]
    if tools and not failed and reasons[-1] not in ("tool_calls", "length", "content_filter"):
        yield "tools were called and the finish reason does not say so"
    yield from _tools(tools)
    for choice in choices:
        delta = choice["delta"]
        if any(value is None for value in delta.values()):
            yield "a null in a delta"
        if ("reasoning" in delta or "reasoning_content" in delta) and delta.get("reasoning") != delta.get("reasoning_content"):
            yield "reasoning under one name only"


def _tools(lists: list[list[dict[str, Any]]]) -> Iterator[str]:
    latest = -1
    for calls in lists:
        if len(calls) != 1 or "index" not in calls[0]:
            yield "not one tool call with its index per chunk"
            return
        call, function = calls[0], calls[0].get("function", {})
        if call["index"] not in (latest, latest + 1):
            yield "tool calls are interleaved"
        first, latest = call["index"] > latest, call["index"]
        if first and (call.keys() != {"index", "id", "type", "function"} or function.keys() != {"name", "arguments"}):
            yield "the first delta of a tool call lacks id, type or name"
        if not first and (call.keys() != {"index", "function"} or function.keys() != {"arguments"}):
            yield "a later delta of a tool call has more than arguments"


def _json(data: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _decodes(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
