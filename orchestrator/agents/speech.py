"""What an agent has said so far, and how more of it reaches readers: delta by delta, or fitted onto what they have.

`sent` is the answer as readers have it, the text of all turns in a row. `spoken` is the part of the turn that goes on. As long as
that is the first, they are one and the same, so that a plain answer is gathered once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from orchestrator.agents.call import UpstreamCall
from orchestrator.agents.history import Past
from orchestrator.agents.splice import Reset, Splice
from orchestrator.agents.transcript import Transcript, payload_of
from orchestrator.agents.turn import Turn
from orchestrator.agents.voice import Voice
from orchestrator.events import Event, EventType
from orchestrator.metrics import Metrics
from orchestrator.upstreams.upstream import Delta, Finish, Note, Piece, Usage

_PARTIAL = EventType.LLM_PARTIAL.value
"""Looking a member up costs more than making an event of it."""


class Speech:
    """One attempt's. `listen`, then `say` whatever the upstream brings, then `end`; again for each call.

    `first` is told of the call whose first delta readers get.
    """

    def __init__(self, voice: Voice, attempt: int, metrics: Metrics, first: Callable[[UpstreamCall], None]) -> None:
        self.sent = Transcript()
        self.turns: list[Turn] = []
        self._voice = voice
        self._attempt = attempt
        self._metrics = metrics
        self._first = first
        self._anew = False
        self._turn = self._said = self.sent
        """What the turn that goes on has said; what the call that goes on says. They differ while a turn is generated again."""
        self._splice: Splice | None = None

    def take_up(self, past: Past) -> None:
        """Go on from what earlier attempts said."""
        self.sent, self.turns, self._anew = past.transcript, past.turns, past.anew
        self._turn = self._said = self.sent if past.current is None else past.current

    def next_turn(self, turn: Turn) -> None:
        """The last call ended this turn, and another one begins."""
        self.turns.append(turn)
        self._turn = self._said = Transcript()

    @property
    def spoken(self) -> Transcript:
        """What readers have of the turn that goes on."""
        return self._turn if self.turns else self.sent

    @property
    def offset(self) -> int | None:
        """Where in the answer the turn's text begins, unless it simply follows what was said: readers of `LLM_OUTPUT` need it."""
        return sum(len(turn.text) for turn in self.turns) if self.turns or self._anew else None

    @property
    def plain(self) -> bool:
        """Whether that is text alone, with nothing before it that was unsaid: what an upstream can be asked to continue."""
        if self._anew or not self.spoken.plain:
            return False
        return not self.turns or self.spoken.text == self.sent.text[self.offset :]

    def listen(self, *, continued: bool) -> None:
        """A call begins to be answered: it goes on from what was said, or else says the turn again."""
        self._splice = None if continued or self.spoken.empty else Splice(self.sent)
        self._said = self._turn if self._splice is None else Transcript()
        if self._splice is not None:
            for turn in self.turns:  # they stand: what is generated again begins after them
                self._splice.feed(turn.delta())

    def say(self, pieces: Sequence[Piece], call: UpstreamCall) -> None:
        """Everything that one read of the upstream brought, in one go and at one time."""
        events: list[Event] = []
        at = self._voice.at.now()
        said, splice = self._said, self._splice
        for piece in pieces:
            if type(piece) is not Delta:
                self._note(piece, call)
                continue
            if piece.tool_calls is not None and call.own is not None:
                rest = call.own.rest(piece)
                if rest is None:
                    continue
                piece = rest
            said.add(piece)
            if splice is not None:
                events += self._fitted(splice.feed(piece), at)
                continue
            if said is not self.sent:
                self.sent.add(piece)
            events.append(self._event(piece, at))
        if events:
            if call.first_at is None:
                self._first(call)
                events[0] = _from(call, events[0])
            self._voice.writer.emit(*events)

    def end(self) -> Sequence[str | None]:
        """The call is over: what it left out of an answer that was generated again is unsaid. Why each choice ended."""
        if self._splice is not None:
            self._voice.writer.emit(*self._fitted(self._splice.end(), self._voice.at.now()))
            self._turn, self._splice = self._said, None
            if not self.turns:
                self.sent = self._said
        return [choice.finish_reason for choice in self._said.choices.values()]

    def cut(self, reason: str) -> None:
        """What was said is all that will be, for this reason."""
        open_ones = [index for index, choice in self.spoken.choices.items() if choice.finish_reason is None]
        for index in open_ones if self.spoken.choices else (0,):
            self.spoken.finish(index, reason)

    def _fitted(self, parts: Sequence[Delta | Reset], at: str) -> list[Event]:
        """What readers are told of an answer that is generated again. It is what was sent, should this call break off too."""
        for part in parts:
            if isinstance(part, Reset):
                self.sent.choices[part.choice].cut(part.offset)
            else:
                self.sent.add(part)
        return [self._event(part, at) for part in parts]

    def _event(self, part: Delta | Reset, at: str) -> Event:
        if type(part) is Delta:
            return Event(_PARTIAL, at, self._voice.agent_id, part.content, payload_of(part))
        assert isinstance(part, Reset)
        payload: dict[str, Any] = {
            "offset": part.offset,
            "reason": "the answer was generated again and differs",
            "attempt": self._attempt,
            **({"choice": part.choice} if part.choice else {}),
        }
        if self.turns and not part.offset:
            payload["again"] = self.offset
        return Event(EventType.OUTPUT_RESET, at, self._voice.agent_id, payload=payload)

    def _note(self, piece: Piece, call: UpstreamCall) -> None:
        match piece:
            case Finish(choice, reason):
                self._said.finish(choice, reason)
            case Usage():
                call.usage = piece
            case Note(what):
                call.notes.append(what)
                self._metrics.upstream_note(what)
            case Delta():
                raise AssertionError("deltas are said, not noted")


def _from(call: UpstreamCall, first: Event) -> Event:
    """A call's first delta, with the name of the upstream that gives it."""
    return msgspec.structs.replace(first, payload={**(first.payload or {}), "upstream": call.upstream})
