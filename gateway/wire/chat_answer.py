"""An answer as chat completions give it: in turns, where the run waits for approvals, and with asides, where they are asked for.

A turn ends where the run asks for a decision; the next one begins there. What other agents say is told as reasoning if the client
wants it: one of them live, and those that speak meanwhile each as a whole when it has finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.errors import OutputReset
from gateway.wire.answer import Answer, Completed, Failed, Piece, Said, Unsaid
from gateway.wire.chat_approval import call_of
from orchestrator.events import Entry, Event, EventType
from orchestrator.runs import Run
from orchestrator.upstreams.upstream import Usage


class ChatAnswer(Answer):
    """`after`: the approval that ended the turn before this one. What was said until then is the client's already."""

    def __init__(self, run: Run, after: str | None = None) -> None:
        super().__init__(run.answers)
        self._run_id = run.id
        self._cached = run.cached is not None
        self._waits = run.options.wait
        self._aside = run.options.reasoning
        self._after = after
        self._said_before: list[int] = []
        self._speaker: str | None = None
        self._unheard: set[str] = set()
        """Agents that began to speak while another did."""

    def headers(self) -> dict[str, str]:
        """What is known by now of who gave the answer. One that is given again was given by nobody now."""
        return {} if self._cached else self.served.headers()

    def fold(self, entry: Entry) -> list[Piece]:
        event = entry.event
        if event.type == EventType.APPROVAL_REQUESTED and (self._after is not None or not self._waits):
            return self._asked(event.payload or {})
        pieces = super().fold(entry)
        if self._after is not None:
            return [piece for piece in pieces if isinstance(piece, Completed | Failed)]
        if self._said_before:
            pieces = [self._of_this_turn(piece) for piece in pieces]
        if self._aside and event.agent_id is not None and event.agent_id not in self._agents:
            pieces += [Said(0, "reasoning", text) for text in self._told(event, event.agent_id)]
            if pieces:
                self.choice(0)
        return pieces

    def concerns(self, event: Event) -> bool:
        if self._after is not None:
            return True  # it was told in an earlier turn, if it was to be told
        return super().concerns(event) or (event.type == EventType.APPROVAL_REQUESTED and not self._waits)

    def _asked(self, payload: Mapping[str, Any]) -> list[Piece]:
        if self._after is not None:
            if payload.get("approval_id") == self._after:
                self._after = None
                self._begin()
            return []
        choice = self.choice(0)
        return [Said(0, "tool_calls", choice.tool_call_delta(call_of(self._run_id, payload), 0)), Completed()]

    def _begin(self) -> None:
        """What was used before has been told; what was said stays said."""
        self.usage, self._counted = Usage(), False
        self._said_before = [choice.content_chars for choice in self.choices]
        for choice in self.choices:
            choice.begin_turn()

    def _of_this_turn(self, piece: Piece) -> Piece:
        """Text that is void is counted from where the turn began; what an earlier one said cannot be taken back."""
        if not isinstance(piece, Unsaid) or piece.choice >= len(self._said_before):
            return piece
        offset = piece.offset - self._said_before[piece.choice]
        return Failed(OutputReset().failure()) if offset < 0 else Unsaid(piece.choice, offset)

    def _told(self, event: Event, agent: str) -> Iterator[str]:
        match event.type:
            case EventType.LLM_PARTIAL if event.message and self._speaker == agent:
                yield event.message
            case EventType.LLM_PARTIAL if event.message and self._speaker is None and agent not in self._unheard:
                self._speaker = agent
                yield f"[{agent}] {event.message}"
            case EventType.LLM_PARTIAL if event.message:
                self._unheard.add(agent)
            case EventType.LLM_OUTPUT | EventType.AGENT_FAILED if self._speaker == agent:
                self._speaker = None
                yield "\n\n"
            case EventType.LLM_OUTPUT:
                self._unheard.discard(agent)
                if event.message:
                    apart = "" if self._speaker is None else "\n\n"
                    yield f"{apart}[{agent}] {event.message}\n\n"
            case _:
                return
