"""A turn that ended in calls of our own tools: what the model said, what it called, what it was told. No I/O.

It is written to the log as it happens, so that another attempt can go on from it: `LLM_OUTPUT` lists the calls as
`server_tool_calls`, and each call has one result, a `TOOL_OBSERVATION` or a `TOOL_ERROR`. Arguments are logged without the
secrets in them. Whoever goes on from the log has them like that: the model is reminded of them so, and a call that would need
them is not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.agents.outputs import goes_on
from orchestrator.errors import HeadgateError
from orchestrator.events import Event, EventType
from orchestrator.tools.redaction import Redactor
from orchestrator.tools.schema import decoded
from orchestrator.tools.tool import InvalidArguments
from orchestrator.upstreams.upstream import Delta

RESULTS = frozenset({EventType.TOOL_OBSERVATION, EventType.TOOL_ERROR})


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """`arguments` is JSON, an object; `invalid` says what was wrong with what the model wrote instead of one."""

    id: str
    name: str
    arguments: str = "{}"
    redacted: bool = False
    invalid: str | None = None

    def logged(self, redactor: Redactor) -> dict[str, Any]:
        """As `LLM_OUTPUT` lists it."""
        params = msgspec.json.decode(self.arguments)
        hidden = redactor.value(params)
        arguments = self.arguments if hidden == params else msgspec.json.encode(hidden).decode()
        facts: dict[str, Any] = {**self.message(), "function": {"name": self.name, "arguments": arguments}}
        if self.redacted or hidden != params:
            facts["redacted"] = True
        if self.invalid is not None:
            facts["invalid"] = self.invalid
        return facts

    def message(self) -> dict[str, Any]:
        """As the upstream is reminded of it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def written(call_id: str, name: str, arguments: str) -> ToolCall:
    """The call that a model wrote. Servers refuse to be reminded of arguments that are not JSON, so those are not kept."""
    try:
        decoded(arguments)
    except InvalidArguments as error:
        return ToolCall(call_id, name, invalid=error.message)
    return ToolCall(call_id, name, arguments if arguments.strip() else "{}")


class Turn:
    """`results` is what the model is told, by the calls' ids; `invoked` are the calls of an earlier attempt that were begun."""

    def __init__(
        self, calls: Sequence[ToolCall], text: str = "", *, reasoning: str | None = None, refusal: str | None = None
    ) -> None:
        self.calls = calls
        self.text = text
        self.results: dict[str, str] = {}
        self.invoked: set[str] = set()
        self._reasoning = reasoning
        self._refusal = refusal

    @property
    def open(self) -> list[ToolCall]:
        """The calls without a result."""
        return [call for call in self.calls if call.id not in self.results]

    def messages(self) -> list[dict[str, Any]]:
        """What the next upstream call is told of it."""
        said = {"role": "assistant", "content": self.text or None, "tool_calls": [call.message() for call in self.calls]}
        told = [{"role": "tool", "tool_call_id": call.id, "content": self.results[call.id]} for call in self.calls]
        return [said, *told]

    def delta(self) -> Delta:
        """What readers were told of it, in one piece."""
        return Delta(content=self.text or None, reasoning=self._reasoning, refusal=self._refusal)

    def note(self, event: Event) -> None:
        """Take up what the log says of one of its calls."""
        call_id = (event.payload or {}).get("call_id", "")
        if event.type == EventType.TOOL_INVOKED:
            self.invoked.add(call_id)
        elif event.type in RESULTS:
            self.results[call_id] = event.message or ""

    @classmethod
    def of(cls, output: Event) -> Turn | None:
        """The turn that an `LLM_OUTPUT` ended; None where it ended the answer, or a call that broke off."""
        facts = output.payload or {}
        if not goes_on(facts):
            return None
        calls = [
            ToolCall(
                call["id"],
                call["function"]["name"],
                call["function"]["arguments"],
                redacted=call.get("redacted", False),
                invalid=call.get("invalid"),
            )
            for call in facts["server_tool_calls"]
        ]
        return cls(calls, output.message or "", reasoning=facts.get("reasoning"), refusal=facts.get("refusal"))


def with_turns(body: dict[str, Any], offered: Sequence[dict[str, Any]], turns: Sequence[Turn]) -> dict[str, Any]:
    """The request for the next upstream call: our tools before the client's, and what became of earlier calls of ours.

    A request that forces a call has had it after the first turn; it would be forced for ever.
    """
    told = [message for turn in turns for message in turn.messages()]
    equipped = {**body, "messages": [*body["messages"], *told], "tools": [*offered, *(body.get("tools") or ())]}
    if turns and body.get("tool_choice") not in (None, "none", "auto"):
        equipped["tool_choice"] = "auto"
    return equipped


class TooManyTurns(HeadgateError):
    """The model kept calling tools and did not come to an answer within the agent's `max_turns`."""

    status = 502
    code = "max_turns"
