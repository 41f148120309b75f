"""A task's events as a person reads them: the answer as it comes, and beside it, in few words, what else is going on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TextIO

from gateway.wire.answer import Answer, Completed, Said, Unsaid
from headgate.events import Event
from headgate.terminal import DIM, styled, tame
from orchestrator import events as logged
from orchestrator.events import ENDINGS, EventType

_TOLD_ELSEWHERE = ENDINGS | {
    EventType.WORKFLOW_STARTED,
    EventType.STREAM_END,
    EventType.LLM_PROMPT,
    EventType.LLM_PARTIAL,
    EventType.LLM_OUTPUT,
    EventType.OUTPUT_RESET,
}
"""What is the answer itself, or its frame."""

_ARGUMENTS_CHARS = 80


class LivePrinter:
    """Writes the first choice of what the answering agent says to `out`; on a terminal its reasoning too; at the end, tool calls.

    `note` is told everything else. Events up to `after` are taken into account, and not shown.
    """

    def __init__(self, out: TextIO, note: Callable[[str], None], after: int = 0) -> None:
        self.ending: Event | None = None
        self._out = out
        self._note = note
        self._after = after
        self._agents: tuple[str, ...] = ()
        self._steps: set[str] = set()
        self._answer = Answer(())
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._reasoning = False
        self._at_line_start = True

    def show(self, event: Event) -> None:
        if event.type == EventType.WORKFLOW_STARTED:
            self._agents = tuple((event.payload or {}).get("answers", ()))
            self._answer = Answer(self._agents)
        if event.type in ENDINGS:
            self.ending = event
        shown = event.seq > self._after
        if event.type == EventType.PROGRESS:
            self._steps.add((event.payload or {}).get("step_name", ""))
        if event.type != EventType.STREAM_END:
            for piece in self._answer.fold(_entry(event)):
                self._piece(piece, shown)
        # That a step began and ended is told by its progress, and what its agent says of the same is an echo.
        if shown and (told := words(event, {*self._agents, *self._steps})) is not None:
            self.tell(told)

    def tell(self, text: str) -> None:
        """A note, on a line of its own where both go to the same terminal."""
        if self._out.isatty():
            self._line_start()
        self._note(text)

    def end(self) -> None:
        """Nothing more will come."""
        for call in self._calls.values():
            self._line_start()
            self._write(f"{call.get('name', '')}({call.get('arguments', '')})")
        self._line_start()

    def summary(self) -> str:
        """Why the answer ended and what it cost; empty if it is not complete."""
        if self.ending is None or self.ending.type != EventType.WORKFLOW_COMPLETED or not self._answer.choices:
            return ""
        usage = self._answer.usage
        return f"finish reason: {self._answer.finish_reason(self._answer.choices[0])}, " + (
            f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"
        )

    def _piece(self, piece: object, shown: bool) -> None:
        match piece:
            case Said(choice=0, what="content" | "refusal", value=text):
                self._text.append(text)
                if shown:
                    self._say(text)
            case Said(choice=0, what="reasoning", value=text) if shown and self._out.isatty():
                self._reasoning = True
                self._write(text, DIM)
            case Said(choice=0, what="tool_calls", value=call):
                self._call(call)
            case Unsaid(choice=0, offset=offset):
                self._take_back(offset, shown)
            case Completed():
                self._line_start()
            case _:  # other choices; a failure is told by whoever asked
                pass

    def _say(self, text: str) -> None:
        if self._reasoning:
            self._line_start()
            self._reasoning = False
        self._write(text)

    def _call(self, call: dict[str, Any]) -> None:
        known = self._calls.setdefault(call["index"], {})
        for part, value in (call.get("function") or {}).items():
            known[part] = known.get(part, "") + str(value or "")

    def _take_back(self, offset: int, shown: bool) -> None:
        """What was written stays written: say that it does not hold, and write again what does."""
        kept = "".join(self._text)[:offset]
        self._text = [kept]
        if offset == 0:
            self._calls.clear()
        if shown:
            self._line_start()
            self._note("the answer was generated again and differs; this is how it goes now:")
            self._write(kept)

    def _line_start(self) -> None:
        if not self._at_line_start:
            self._write("\n")

    def _write(self, text: str, style: str | None = None) -> None:
        if not text:
            return
        text = tame(text, self._out)
        self._out.write(styled(text, style, self._out) if style else text)
        self._out.flush()
        self._at_line_start = text.endswith("\n")


def words(event: Event, answering: Collection[str]) -> str | None:
    """What a person is told of an event beside the answer; None for what needs no words."""
    payload = event.payload or {}
    who = event.agent_id or "the task"
    match event.type:
        case type if type in _TOLD_ELSEWHERE:
            return None
        case EventType.AGENT_STARTED | EventType.AGENT_COMPLETED if event.agent_id in answering and not event.message:
            return None
        case EventType.AGENT_RETRYING:
            return f"{who} tries again: {payload.get('error') or event.message}"
        case EventType.TOOL_INVOKED:
            return f"{who} calls {payload.get('tool') or event.message}{_arguments(payload.get('params'))}"
        case EventType.TOOL_OBSERVATION:
            outcome = "failed" if payload.get("success") is False else "answered"
            return f"{payload.get('tool') or 'the tool'} {outcome}"
        case EventType.TOOL_ERROR if payload.get("tool"):
            return f"{payload['tool']} failed: {event.message or payload.get('code')}"
        case EventType.PROGRESS:
            return _progress(event.message or payload.get("message"), payload)
        case EventType.APPROVAL_REQUESTED:
            wanted = payload.get("proposed_action") or event.message or "something"
            return f"approval wanted for {wanted}: headgate approve {event.workflow_id} {payload.get('approval_id')} [--deny]"
        case EventType.APPROVAL_DECISION:
            return f"{payload.get('approval_id')} was {'approved' if payload.get('approved') else 'denied'}"
        case type:
            said = event.message or payload.get("reason")
            what = type.removeprefix("WORKFLOW_").removeprefix("X_").replace("_", " ").lower()
            if type.startswith("AGENT_"):
                what = f"{who}{what.removeprefix('agent')}"
            return f"{what}: {said}" if said else what


def _arguments(params: object) -> str:
    """The beginning of what a tool is called with."""
    if not isinstance(params, dict) or not params:
        return ""
    told = ", ".join(f"{name}={value!r}" for name, value in params.items())
    return f"({told if len(told) <= _ARGUMENTS_CHARS else told[:_ARGUMENTS_CHARS] + ' …'})"


def _progress(message: str | None, payload: dict[str, Any]) -> str:
    share = payload.get("progress")
    percent = f"{share:.0%}" if isinstance(share, int | float) else None
    step = " ".join(str(payload[key]) for key in ("step_name", "status") if payload.get(key))
    told = " ".join(part for part in (percent, message or step) if part) or "progress"
    more = [str(payload["branch"])] if payload.get("branch") else []
    if isinstance(index := payload.get("parallel_index"), int):
        more.append(f"branch {index + 1} of {payload.get('parallel_total')}")
    if payload.get("attempt"):
        more.append(f"attempt {payload['attempt']}")
    told += f" ({', '.join(more)})" if more else ""
    return f"{told}: {payload['error']}" if payload.get("error") else told


def _entry(event: Event) -> logged.Entry:
    """As the log has it, for what reads logs."""
    said = logged.Event(event.type, event.timestamp, event.agent_id, event.message, event.payload)
    return logged.Entry(event.seq, 0, b"", said)
