"""What an agent has said so far, folded from its deltas; and the comparison with it when an answer is generated again. No I/O.

Each choice speaks on several *tracks*: content, reasoning, refusal, a legacy function call, and one per tool call. A
`Transcript` holds the text of each. It becomes the `LLM_OUTPUT` at the end, and it is what a later attempt finds in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.events import Event, EventType
from orchestrator.upstreams.upstream import Delta

FUNCTION_CALL = -1
"""Where the older single function call stands among the tool calls, whose indexes begin at 0."""

Track = tuple[int, str, int]
"""(choice, kind, index): kind is content, reasoning, refusal, tool; the index tells tool calls apart."""


class Choice:
    """One choice's text by track. Tool calls keep the order of their first delta."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.tools: dict[int, dict[str, Any]] = {}
        self.tool_arguments: dict[int, list[str]] = {}
        self.logprobs: list[dict[str, Any]] = []
        self.finish_reason: str | None = None

    @property
    def plain(self) -> bool:
        """Whether nothing but content was said."""
        return not (self.reasoning or self.refusal or self.tools)

    def add(self, delta: Delta) -> None:
        if delta.content is not None:
            self.content.append(delta.content)
        if delta.reasoning is not None:
            self.reasoning.append(delta.reasoning)
        if delta.refusal is not None:
            self.refusal.append(delta.refusal)
        if delta.tool_calls is not None:
            for call in delta.tool_calls:
                self._add_tool(call)
        if delta.function_call is not None:
            self._add_tool({"index": FUNCTION_CALL, "function": delta.function_call})
        if delta.logprobs is not None:
            self.logprobs.append(delta.logprobs)

    def cut(self, offset: int) -> None:
        """Unsay the content after `offset` characters; at 0 everything else is unsaid too."""
        kept = "".join(self.content)[:offset]
        self.content = [kept] if kept else []
        self.logprobs = []
        if not offset:
            self.reasoning, self.refusal, self.tools, self.tool_arguments = [], [], {}, {}

    def output(self) -> dict[str, Any]:
        """The facts of `LLM_OUTPUT` beyond the content, absent where nothing was said."""
        facts: dict[str, Any] = {}
        if self.finish_reason is not None:
            facts["finish_reason"] = self.finish_reason
        if calls := self.calls():
            facts["tool_calls"] = [call for _, call in calls]
        if FUNCTION_CALL in self.tools:
            facts["function_call"] = self._tool(FUNCTION_CALL)["function"]
        if self.reasoning:
            facts["reasoning"] = "".join(self.reasoning)
        if self.refusal:
            facts["refusal"] = "".join(self.refusal)
        if self.logprobs:
            facts["logprobs"] = _joined(self.logprobs)
        return facts

    def calls(self) -> list[tuple[int, dict[str, Any]]]:
        """The tool calls as they stand, each with its index."""
        return [(index, self._tool(index)) for index in self.tools if index != FUNCTION_CALL]

    def _add_tool(self, call: dict[str, Any]) -> None:
        index = call["index"]
        known = self.tools.setdefault(index, {})
        for key in ("id", "type"):
            if key in call and key not in known:
                known[key] = call[key]
        function = call.get("function") or {}
        if "name" in function and "name" not in known:
            known["name"] = function["name"]
        if function.get("arguments"):
            self.tool_arguments.setdefault(index, []).append(function["arguments"])

    def _tool(self, index: int) -> dict[str, Any]:
        known = self.tools[index]
        function = {"arguments": "".join(self.tool_arguments.get(index, ()))}
        if "name" in known:
            function = {"name": known["name"], **function}
        return {key: known[key] for key in ("id", "type") if key in known} | {"function": function}


class Transcript:
    """All choices of one agent's answer."""

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}

    def add(self, delta: Delta) -> None:
        choice = self.choices.get(delta.choice)
        if choice is None:
            choice = self.choices[delta.choice] = Choice()
        choice.add(delta)

    def finish(self, choice: int, reason: str) -> None:
        self.choices.setdefault(choice, Choice()).finish_reason = reason

    @property
    def empty(self) -> bool:
        return not self.choices

    @property
    def plain(self) -> bool:
        """Whether the answer so far is the content of one choice and nothing else: what an upstream can be asked to continue."""
        return set(self.choices) <= {0} and all(choice.plain for choice in self.choices.values())

    @property
    def text(self) -> str:
        """The content of choice 0."""
        return "".join(self.choices[0].content) if 0 in self.choices else ""

    def all_text(self) -> str:
        """Everything that was said on any track, for counting tokens."""
        parts: list[str] = []
        for choice in self.choices.values():
            parts += choice.content + choice.reasoning + choice.refusal
            parts += [known["name"] for known in choice.tools.values() if "name" in known]
            for arguments in choice.tool_arguments.values():
                parts += arguments
        return "".join(parts)

    def output(self) -> dict[str, Any]:
        """The answer's part of the payload of `LLM_OUTPUT`; its message is `text`. Several choices are listed as well."""
        facts = self.choices[0].output() if 0 in self.choices else {}
        if len(self.choices) > 1:
            facts["choices"] = [
                {"index": index, "message": "".join(choice.content), **choice.output()}
                for index, choice in sorted(self.choices.items())
            ]
        return facts

    def tracks(self) -> dict[Track, str]:
        """The text of every track, tool calls as name and arguments."""
        texts: dict[Track, str] = {}
        for index, choice in self.choices.items():
            for kind in ("content", "reasoning", "refusal"):
                if text := "".join(getattr(choice, kind)):
                    texts[index, kind, 0] = text
            for tool, known in choice.tools.items():
                texts[index, "tool", tool] = known.get("name", "") + "\n" + "".join(choice.tool_arguments.get(tool, ()))
        return texts

    @classmethod
    def of(cls, events: Iterable[Event]) -> Transcript:
        """What a log says that its answering agent has said."""
        transcript = cls()
        for event in events:
            if event.type == EventType.LLM_PARTIAL:
                transcript.add(delta_of(event))
            elif event.type == EventType.OUTPUT_RESET:
                payload = event.payload or {}
                if (choice := transcript.choices.get(payload.get("choice", 0))) is not None:
                    choice.cut(payload["offset"])
        return transcript


def delta_of(event: Event) -> Delta:
    """The delta that an `LLM_PARTIAL` carries."""
    payload: Mapping[str, Any] = event.payload or {}
    return Delta(
        choice=payload.get("choice", 0),
        content=event.message,
        reasoning=payload.get("reasoning"),
        refusal=payload.get("refusal"),
        tool_calls=payload.get("tool_calls"),
        logprobs=payload.get("logprobs"),
        function_call=payload.get("function_call"),
    )


def payload_of(delta: Delta) -> dict[str, Any] | None:
    """The payload of the `LLM_PARTIAL` that carries this delta; None for plain text of choice 0, which is nearly all of them."""
    if (
        delta.choice == 0
        and delta.reasoning is None
        and delta.refusal is None
        and delta.tool_calls is None
        and delta.logprobs is None
        and delta.function_call is None
    ):
        return None
    facts = {
        "choice": delta.choice or None,
        "reasoning": delta.reasoning,
        "refusal": delta.refusal,
        "tool_calls": delta.tool_calls,
        "logprobs": delta.logprobs,
        "function_call": delta.function_call,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _joined(logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Per-delta logprobs as one object: their lists one after the other."""
    whole: dict[str, Any] = {}
    for part in logprobs:
        for key, value in part.items():
            whole[key] = whole[key] + value if isinstance(whole.get(key), list) and isinstance(value, list) else value
    return whole
