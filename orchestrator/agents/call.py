"""One upstream call as it goes: who answers it, when it began to, what it cost. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.agents.own_calls import OwnCalls
from orchestrator.upstreams.routing import Answer
from orchestrator.upstreams.upstream import Usage


class UpstreamCall:
    """It was given `given_chars` of the answer to continue from, which are not its own.

    `hedged`: two upstreams were asked. `beside` is the one of them that did not answer, as long as it has not failed: what it was
    asked is paid for too. `passed_over` were left alone, though they come before the one that answers.
    """

    def __init__(self, call_id: str, started_at: float, given_chars: int = 0) -> None:
        self.id = call_id
        self.started_at = started_at
        self.given_chars = given_chars
        self.first_at: float | None = None
        self.upstream: str | None = None
        self.hedged = False
        self.beside: str | None = None
        self.passed_over: Sequence[str] = ()
        self.usage: Usage | None = None
        self.notes: list[str] = []
        self.body: dict[str, Any] = {}
        self.own: OwnCalls | None = None
        """What it calls of our tools, where the agent has some."""

    def answered(self, answer: Answer, continued_chars: int) -> None:
        """`continued_chars` were given to be continued from."""
        self.upstream, self.beside, self.passed_over = answer.upstream, answer.lost, answer.passed_over
        self.given_chars = continued_chars if answer.continued else 0

    def output(self, model: str, said: dict[str, Any], usage: Usage, now: float, *, aborted: bool) -> dict[str, Any]:
        """The payload of its `LLM_OUTPUT`; `said` is what the answer contributes."""
        payload: dict[str, Any] = {
            "call_id": self.id,
            "model": model,
            "upstream": self.upstream,
            **said,
            "usage": usage.facts(),
            "duration_ms": round((now - self.started_at) * 1000),
        }
        if self.first_at is not None:
            payload["ttft_ms"] = round((self.first_at - self.started_at) * 1000)
        if self.hedged:
            payload["hedged"] = True
        if self.passed_over:
            payload["passed_over"] = list(self.passed_over)
        if aborted:
            payload["aborted"] = True
        if self.notes:
            payload["notes"] = self.notes
        return payload

    def other(self) -> UpstreamCall | None:
        """The call beside this one that was closed before it said anything; its cost is the prompt's."""
        if self.beside is None or self.usage is None:
            return None
        other = UpstreamCall(f"{self.id}-hedge", self.started_at)
        other.upstream, other.hedged = self.beside, True
        prompt_tokens = self.usage.prompt_tokens
        other.usage = Usage(prompt_tokens, 0, prompt_tokens, estimated=True)
        return other
