"""A run's log as progress: one object per step that begins or ends, and the run's own beginning and end. No I/O.

The object is plumego's (docs/reference/progress.md). A plan's steps say their progress themselves, in `PROGRESS` events; a plain
conversation has none, so its one agent is its one step here. The fraction is what the log says and never falls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gateway.errors import StreamGap
from gateway.wire import sse
from orchestrator.errors import Failure
from orchestrator.events import Entry, Event, EventType, Gap
from orchestrator.runs import Run
from orchestrator.streamlog.log import BEGINNING, Position

STEP_LOG_CHARS = 4096
"""So much of what a step brought is told with its end."""

_encode = msgspec.json.Encoder().encode
_STATUS = {EventType.AGENT_STARTED: "started", EventType.AGENT_COMPLETED: "completed", EventType.AGENT_FAILED: "failed"}


class ProgressFold:
    """Feed it a run's log from its first event. `step_logs`: what steps bring is told with their end."""

    def __init__(self, run: Run, *, step_logs: bool = True) -> None:
        self.progress = 0.0
        self._run = run
        self._step_logs = step_logs
        self._planned = False
        self._begun = False
        self._outputs: dict[str, str] = {}

    def fold(self, entry: Entry) -> Iterator[dict[str, Any]]:
        """The progress objects that this entry causes."""
        event, payload = entry.event, entry.event.payload or {}
        match event.type:
            case EventType.PROGRESS:
                self._planned = True
                yield self._object(entry, self._step(payload))
            case EventType.LLM_OUTPUT if event.agent_id is not None and self._step_logs and event.message:
                self._outputs[event.agent_id] = event.message[:STEP_LOG_CHARS]
            case EventType.WORKFLOW_STARTED:
                self._planned = "steps" in payload
                yield self._object(entry, self._workflow("started"))
            case EventType.WORKFLOW_COMPLETED:
                self.progress = 1.0
                result = {"success": True, "output": payload.get("result"), "usage": payload.get("usage")}
                yield self._object(entry, {**self._workflow("completed"), "result": result})
            case EventType.WORKFLOW_FAILED:
                yield self._object(entry, {**self._workflow("failed"), "error": _words(payload.get("error"))})
            case EventType.WORKFLOW_CANCELLED:
                yield self._object(entry, {**self._workflow("cancelled"), "message": payload.get("reason")})
            case _ if not self._planned and event.agent_id in self._run.answers and event.type in _STATUS:
                status = _STATUS[EventType(event.type)]
                if status != "started" or not self._begun:
                    self._begun = True
                    yield self._object(entry, self._only_step(status, event, payload))
            case _:
                return

    def _step(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        fraction = payload.get("progress")
        if isinstance(fraction, int | float):
            self.progress = max(self.progress, min(float(fraction), 1.0))
        name = payload.get("step_name")
        step = {**payload, "progress": self.progress}
        if payload.get("status") == "completed" and isinstance(name, str) and name in self._outputs:
            step["output"] = self._outputs.pop(name)
        return step

    def _only_step(self, status: str, event: Event, payload: Mapping[str, Any]) -> dict[str, Any]:
        if status == "completed":
            self.progress = 1.0
        step: dict[str, Any] = {
            "step_name": event.agent_id,
            "step_index": 0,
            "step_type": "agent",
            "status": status,
            "progress": self.progress,
        }
        if status == "failed":
            step["error"] = _words(payload.get("error"))
        if status == "completed" and event.agent_id in self._outputs:
            step["output"] = self._outputs.pop(event.agent_id)
        return step

    def _workflow(self, status: str) -> dict[str, Any]:
        workflow = {"step_name": "", "step_index": 0, "step_type": "", "status": status, "progress": self.progress}
        return workflow | ({"input": self._run.query} if status == "started" and self._step_logs and self._run.query else {})

    def _object(self, entry: Entry, step: Mapping[str, Any]) -> dict[str, Any]:
        whole = {
            "workflow_id": self._run.id,
            "session_id": self._run.session_id,
            **step,
            "timestamp": entry.event.timestamp,
            "seq": entry.seq,
        }
        return {name: value for name, value in whole.items() if value is not None}


class ProgressEncoder:
    """`wire.encoder.Encoder`: server-sent events named `progress`, then `done`. Fed from the log's first event; what stands at or
    before `after` is the reader's already. `quiet`: nothing but the end is told."""

    begun = True

    def __init__(self, run: Run, after: Position = BEGINNING, *, step_logs: bool = True, quiet: bool = False) -> None:
        self.failure: Failure | None = None
        self.ended = False
        self._fold = ProgressFold(run, step_logs=step_logs)
        self._after = after
        self._quiet = quiet

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        out: list[bytes] = []
        for item in items:
            if self.ended:
                break
            if isinstance(item, Gap):
                if item.resumes_at is None or item.resumes_at > self._after.seq + 1:
                    out.append(self._break(StreamGap().failure()))
            else:
                out += self._frames(item)
        return b"".join(out)

    def conclude(self) -> bytes:
        self.ended = True
        return sse.frame(b"[DONE]", event="done")

    def keepalive(self, silent_s: float) -> bytes:
        return sse.comment("keepalive")

    def interrupt(self, failure: Failure) -> bytes:
        return self._break(failure)

    def _frames(self, entry: Entry) -> Iterator[bytes]:
        told = list(self._fold.fold(entry))
        if entry.seq > self._after.seq:
            for one in told:
                if not self._quiet or one["step_type"] == "":
                    yield sse.frame(_encode(one), event="progress", id=entry.stream_id)
        if entry.is_end:
            self.ended = True
            yield sse.frame(b"[DONE]", event="done", id=entry.stream_id)

    def _break(self, failure: Failure) -> bytes:
        self.failure, self.ended = failure, True
        facts = {"scope": "stream", "code": failure.code, "message": failure.message, "retryable": failure.retryable}
        return sse.frame(_encode(facts), event=EventType.ERROR_OCCURRED)


def _words(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else None
    return message if isinstance(message, str) else "The run failed."
