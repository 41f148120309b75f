"""The JSON of chat completion chunks, put together from parts that are encoded once per stream.

    {"id", "object", "created", "model", "choices": [{"index", "delta", "logprobs", "finish_reason"}], "usage"?, extras?}
    └────────────── head ──────────────┘                                                             └ tail ┘

`usage` is there, as null, when usage was asked for. Extras are top-level keys of ours or OpenAI's that clients may ignore.
"""

from __future__ import annotations

import hashlib
from urllib.parse import quote, unquote

import msgspec

from gateway.wire.answer import Said
from gateway.wire.usage import usage_object
from orchestrator.events import Entry
from orchestrator.runs import Run
from orchestrator.upstreams.upstream import Usage

encode = msgspec.json.Encoder().encode

PAD_TO_BYTES = 64
"""Obfuscated chunks have a multiple of this size, so that their length does not tell the token."""


def completion_id(run: Run, after: str | None = None) -> str:
    """`after`: the approval after which a later turn of the run began."""
    return "chatcmpl-" + run.id.removeprefix("task-") + ("" if after is None else f".{quote(after, safe='')}")


def completion_of(text: str) -> tuple[str, str | None]:
    """The run's id and the approval that a completion's id names, or a task's id."""
    if not text.startswith("chatcmpl-"):
        return text, None
    run, dot, after = text.removeprefix("chatcmpl-").partition(".")
    return f"task-{run}", unquote(after) if dot else None


class ChunkShapes:
    def __init__(self, run: Run, after: str | None = None) -> None:
        facts = {
            "id": completion_id(run, after),
            "object": "chat.completion.chunk",
            "created": run.created_ms // 1000,
            "model": run.model,
        }
        self._run_id = run.id
        self._head = encode(facts)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}' if run.options.include_usage else b"]}"

    def choice(self, index: int, delta: bytes = b"{}", logprobs: bytes = b"null", finish_reason: bytes = b"null") -> bytes:
        before, after = self._around_delta(index, logprobs, finish_reason)
        return before + delta + after

    def around_content(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the encoded text of a content chunk."""
        before, after = self._around_delta(index, b"null", b"null")
        return before + b'{"content":', b"}" + after

    def role(self, index: int) -> bytes:
        return self.choice(index, b'{"role":"assistant"}')

    def said(self, said: Said) -> bytes:
        match said.what:
            case "reasoning":
                delta = encode({"reasoning_content": said.value, "reasoning": said.value})
            case "tool_calls":
                delta = encode({"tool_calls": [said.value]})
            case "nothing":
                delta = b"{}"
            case "content" | "refusal" | "function_call":
                delta = encode({said.what: said.value})
        return self.choice(said.choice, delta, encode(said.logprobs))

    def finish(self, index: int, reason: str) -> bytes:
        return self.choice(index, finish_reason=encode(reason))

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + encode(usage_object(usage)) + b"}"

    def event(self, entry: Entry) -> bytes:
        """An empty delta that carries an event of the run."""
        return _with(self.choice(0), b'"headgate_events":[' + entry.envelope(self._run_id) + b"]")

    def keepalive(self, delta: bytes) -> bytes:
        """Marked, so that a client which counts chunks in order to resume can leave it out."""
        return _with(self.choice(0, delta), b'"headgate_keepalive":true')

    def obfuscated(self, chunk: bytes, key: str) -> bytes:
        """The chunk with a padding that depends on nothing but `key`, so that a resumed stream has the same bytes."""
        bare = len(chunk) + len(b',"obfuscation":""')
        padding = hashlib.blake2b(f"{self._run_id} {key}".encode()).hexdigest()[: -bare % PAD_TO_BYTES]
        return _with(chunk, b'"obfuscation":"' + padding.encode() + b'"')

    def _around_delta(self, index: int, logprobs: bytes, finish_reason: bytes) -> tuple[bytes, bytes]:
        before = self._head + b'{"index":%d,"delta":' % index
        return before, b',"logprobs":' + logprobs + b',"finish_reason":' + finish_reason + b"}" + self._tail


def _with(chunk: bytes, extra: bytes) -> bytes:
    return chunk[:-1] + b"," + extra + b"}"
