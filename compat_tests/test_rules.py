"""The judge finds every kind of bad stream. Each case takes a good stream, spoils it, and names the complaint that must come."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from compat_tests.manifest import promise
from compat_tests.rules import Asked, complaints

Chunks = list[dict[str, Any]]


def chunk(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def tool(**call: Any) -> dict[str, Any]:
    return chunk(tool_calls=[call])


def good() -> Chunks:
    return [chunk(role="assistant"), chunk(content="Hello"), chunk(finish="stop")]


def calling() -> Chunks:
    return [
        chunk(role="assistant"),
        tool(index=0, id="call_1", type="function", function={"name": "f", "arguments": ""}),
        tool(index=0, function={"arguments": "{}"}),
        chunk(finish="tool_calls"),
    ]


def counted() -> Chunks:
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return [{**each, "usage": None} for each in good()] + [{**chunk(), "choices": [], "usage": usage}]


def body(chunks: Chunks, end: str = "data: [DONE]\n\n") -> bytes:
    return ("".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + end).encode()


ERROR = 'data: {"error": {"message": "m", "type": "t", "param": null, "code": "c"}}\n\n'


@promise("judge.finds-every-breach")
def test_the_judge_has_nothing_against_good_streams() -> None:
    """style.md, Tests: nor may it always fail."""
    assert complaints(body(good())) == []
    assert complaints(body(calling())) == []
    assert complaints(body(counted()), Asked(usage=True)) == []
    assert complaints(body(good()[:2], ERROR)) == []
    assert complaints(b": keepalive\n" + body(good())) == []
    assert complaints(body(good()).replace(b"data", b"id: 1-1\ndata", 1), Asked(ids=True)) == []
    assert (
        complaints(body([*good()[:1], chunk(1, role="assistant"), *good()[1:], chunk(1, finish="stop")]), Asked(choices=2)) == []
    )


SPOILED_CHUNKS: list[tuple[str, Callable[[Chunks], object], Callable[[], Chunks]]] = [
    ("the role is not in exactly the first chunk", lambda c: c[0]["choices"][0]["delta"].clear(), good),
    ("the role is not in exactly the first chunk", lambda c: c[1]["choices"][0]["delta"].update(role="assistant"), good),
    ("id, created or model change", lambda c: c[1].update(id="chatcmpl-2"), good),
    ("id, created or model change", lambda c: c[2].update(created=2), good),
    ("object is not chat.completion.chunk", lambda c: c[1].update(object="chat.completion"), good),
    ("id does not begin with chatcmpl-", lambda c: [each.update(id="task-1") for each in c], good),
    ("a chunk with other keys", lambda c: c[1].pop("created"), good),
    ("a chunk with other keys", lambda c: c[1].update(seq=4), good),
    ("not one finish reason, at the end", lambda c: c.pop(), good),
    ("not one finish reason, at the end", lambda c: c.append(c[-1]), good),
    ("not one finish reason, at the end", lambda c: c[-1]["choices"][0].update(finish_reason="error"), good),
    ("a choice with other keys", lambda c: c[1]["choices"][0].pop("logprobs"), good),
    ("a delta that is no object", lambda c: c[1]["choices"][0].update(delta=None), good),
    ("a null in a delta", lambda c: c[1]["choices"][0]["delta"].update(refusal=None), good),
    ("choices are missing or out of order", lambda c: c[1]["choices"][0].update(index=1), good),
    ("reasoning under one name only", lambda c: c[1]["choices"][0]["delta"].update(reasoning="hm"), good),
    ("usage that nobody asked for", lambda c: c[1].update(usage=None), good),
    ("a chunk without choices", lambda c: c[1].update(choices=[]), good),
    ("usage is not in exactly the last chunk", lambda c: c[1].update(usage=c[-1]["usage"]), counted),
    ("usage is not in exactly the last chunk", lambda c: c.pop(), counted),
    ("a chunk without usage: null", lambda c: c[1].pop("usage"), counted),
    ("choices beside usage, or neither", lambda c: c[-1].update(choices=c[-2]["choices"]), counted),
    ("tools were called and the finish reason does not say so", lambda c: c[-1].update(chunk(finish="stop")), calling),
    (
        "the first delta of a tool call lacks id, type or name",
        lambda c: c[1]["choices"][0]["delta"]["tool_calls"][0].pop("id"),
        calling,
    ),
    ("a later delta of a tool call has more than arguments", lambda c: c.insert(2, c[1]), calling),
    (
        "not one tool call with its index per chunk",
        lambda c: c[2]["choices"][0]["delta"]["tool_calls"][0].pop("index"),
        calling,
    ),
    ("tool calls are interleaved", lambda c: c[2]["choices"][0]["delta"]["tool_calls"][0].update(index=7), calling),
]


@promise("judge.finds-every-breach")
@pytest.mark.parametrize(("complaint", "spoil", "stream"), SPOILED_CHUNKS)
def test_a_spoiled_chunk_is_noticed(complaint: str, spoil: Callable[[Chunks], object], stream: Callable[[], Chunks]) -> None:
    """style.md, Tests: a test that cannot fail is a defect."""
    chunks = json.loads(json.dumps(stream()))
    spoil(chunks)
    assert complaint in complaints(body(chunks), Asked(usage=stream is counted))


SPOILED_BYTES: list[tuple[str, bytes]] = [
    ("does not end with exactly one of [DONE] and an error", body(good(), "")),
    ("does not end with exactly one of [DONE] and an error", body(good()) + b"data: [DONE]\n\n"),
    ("does not end with exactly one of [DONE] and an error", body(good(), "data: [DONE]\n\n" + ERROR)),
    ("does not end with exactly one of [DONE] and an error", body(good()) + body(good()[1:2], "")),
    ("an error that is not the end", body(good()[:1], ERROR + ERROR)),
    ("a finish reason before an error", body(good(), ERROR)),
    ("an error event of another shape", body(good()[:2], 'data: {"error": {"message": "m"}}\n\n')),
    ("an error event of another shape", body(good()[:2], ERROR.replace("}}", '}, "choices": []}'))),
    ("ends within an event", body(good())[:-1]),
    ("a comment with a blank line of its own", b": keepalive\n\n" + body(good())),
    ("lines other than data, id and keepalive", b"retry: 1000\n" + body(good())),
    ("lines other than data, id and keepalive", body(good()).replace(b"\n", b"\r\n")),
    ("event names", b"event: chunk\n" + body(good())),
    ("ids that nobody asked for", b"id: 1-1\n" + body(good())),
    ("reads differently where lines are split as Python does", body(good()).replace(b"Hello", "\u2028".encode())),
    ("not UTF-8", body(good()).replace(b"Hello", b"\xff")),
]


@promise("judge.finds-every-breach")
@pytest.mark.parametrize(("complaint", "stream"), SPOILED_BYTES)
def test_spoiled_bytes_are_noticed(complaint: str, stream: bytes) -> None:
    """style.md, Tests: a test that cannot fail is a defect."""
    assert complaint in complaints(stream)
