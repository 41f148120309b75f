"""Logs made by hand: entries as a run's log would hold them, and the runs they belong to."""

from __future__ import annotations

from typing import Any

from orchestrator.events import Entry, Event, encode, timestamp
from orchestrator.runs import ChatOptions, Run

RUN_ID = "task-0192f0c1a2b37abc8def0123456789ab"
CREATED_MS = 1_730_000_000_123
AGENT = "agent"


def run(**options: bool) -> Run:
    return Run(id=RUN_ID, tenant="t", model="local/m", answers=(AGENT,), created_ms=CREATED_MS, options=ChatOptions(**options))


class LogBook:
    """Write events, read entries. Every entry has its own millisecond; bodies are decoded afresh, as if they came from Redis."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(
        self, type: str, message: str | None = None, payload: dict[str, Any] | None = None, agent: str | None = None
    ) -> LogBook:
        seq = len(self.entries) + 1
        ms = CREATED_MS + seq
        self.entries.append(Entry(seq, ms, encode(Event(type, timestamp(ms), agent, message, payload))))
        return self

    def started(self) -> LogBook:
        return self.add("WORKFLOW_STARTED").add("AGENT_STARTED", agent=AGENT)

    def partial(self, message: str | None = None, *, agent: str = AGENT, **payload: Any) -> LogBook:
        return self.add("LLM_PARTIAL", message, payload or None, agent)

    def text(self, *words: str) -> LogBook:
        for word in words:
            self.partial(word)
        return self

    def output(
        self,
        message: str | None,
        *,
        finish: str | None = "stop",
        tokens: tuple[int, int] = (3, 2),
        agent: str = AGENT,
        **more: Any,
    ) -> LogBook:
        prompt, completion = tokens
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "estimated": False,
        }
        payload: dict[str, Any] = {"call_id": f"call-{len(self.entries)}", "model": "m", "upstream": "u"}
        payload |= {"finish_reason": finish, "usage": usage | more.pop("usage", {}), "duration_ms": 12, "ttft_ms": 3}
        return self.add("LLM_OUTPUT", message, payload | more, agent)

    def reset(self, offset: int, **more: Any) -> LogBook:
        return self.add("OUTPUT_RESET", None, {"offset": offset, "reason": "diverged", "attempt": 2} | more, AGENT)

    def completed(self, result: Any = "", **more: Any) -> LogBook:
        self.add("AGENT_COMPLETED", agent=AGENT)
        self.add("WORKFLOW_COMPLETED", None, {"result": result, "duration_ms": 20} | more)
        return self.add("STREAM_END")

    def failed(self, **error: Any) -> LogBook:
        return self.add("WORKFLOW_FAILED", None, {"error": error}).add("STREAM_END")

    def cancelled(self, **payload: Any) -> LogBook:
        return self.add("WORKFLOW_CANCELLED", None, payload or None).add("STREAM_END")

    def archived(self) -> list[Entry]:
        """The entries as the archive has them: all but the deltas."""
        return [entry for entry in self.entries if entry.event.type != "LLM_PARTIAL"]


def plain() -> LogBook:
    """The log that nearly every test starts from: two words."""
    return LogBook().started().text("Hello", " world").output("Hello world").completed("Hello world")


CALLS: list[dict[str, Any]] = [
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "sub", "arguments": "{}"}},
]


def golden() -> dict[str, LogBook]:
    """One log for each shape that an answer can have, all completed."""
    logprobs = {"content": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
    several = [
        {"index": 0, "message": "one", "finish_reason": "stop"},
        {"index": 1, "message": "two", "finish_reason": "length"},
        {"index": 2, "message": "", "finish_reason": "stop", "refusal": "no"},
    ]
    tool_deltas = LogBook().started()
    for call in CALLS:
        tool_deltas.partial(tool_calls=[call | {"function": {"name": call["function"]["name"]}}])
        for character in call["function"]["arguments"]:
            tool_deltas.partial(tool_calls=[{"index": call["index"], "function": {"arguments": character}}])
    return {
        "plain": plain(),
        "empty": LogBook().started().output("").completed(""),
        "unicode": LogBook().started().text("naïve ", "日本", "\u2028\u2029\x85", "🙂").output(None).completed(),
        "reasoning": LogBook()
        .started()
        .partial(reasoning="Hm")
        .partial(reasoning="m.")
        .text("Yes")
        .output("Yes", reasoning="Hmm."),
        "refusal": LogBook().started().partial(refusal="I ").partial(refusal="won't").output("", refusal="I won't"),
        "tools": tool_deltas.output("", finish="tool_calls", tool_calls=CALLS),
        "text and tools": LogBook()
        .started()
        .text("Let me", " see")
        .partial(tool_calls=CALLS)
        .output("Let me see", tool_calls=CALLS),
        "function": LogBook()
        .started()
        .partial(function_call={"name": "add", "arguments": ""})
        .partial(function_call={"arguments": "{}"})
        .output("", finish="function_call", function_call={"name": "add", "arguments": "{}"}),
        "logprobs": LogBook().started().partial("Hi", logprobs=logprobs).partial("Hi", logprobs=logprobs).output("HiHi"),
        "logprobs alone": LogBook().started().text("Hi").partial(logprobs=logprobs).output("Hi"),
        "choices": LogBook()
        .started()
        .partial("tw", choice=1)
        .text("one")
        .partial("o", choice=1)
        .partial(choice=2, refusal="no")
        .output("one", choices=several),
        "two agents": LogBook()
        .started()
        .partial("draft", agent="helper")
        .output("draft", agent="helper", tokens=(10, 20), usage={"cached": 4, "reasoning": 1})
        .text("final")
        .output("final", usage={"estimated": True}),
        "undeltaed": LogBook().started().output("Hello world", reasoning="Hm", tool_calls=CALLS),
        "half deltaed": LogBook().started().text("Hello").output("Hello world"),
        "noise": LogBook()
        .started()
        .text("a")
        .add("ERROR_OCCURRED", "try again", {"severity": "warning"})
        .add("PROGRESS", None, {"done": 1})
        .text("b")
        .add("X_MINE", "hello\u2028")
        .output("ab"),
        "result only": LogBook().started(),
    }


def endings() -> dict[str, LogBook]:
    """`golden`, each with its ending."""
    books = golden()
    for name, book in books.items():
        if book.entries[-1].event.type != "STREAM_END":
            book.completed("done" if name == "result only" else "x")
    return books
