"""Runs that a user's own Temporal worker executes: what the worker is given, and how its result becomes the run's ending.

The worker may say as much or as little as it likes in the run's log. What it did not say itself is said here when its workflow
ends: the answer of an agent that only streamed, or the workflow's result as the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.agents.history import Past, past
from orchestrator.clock import Clock
from orchestrator.ender import Ender
from orchestrator.errors import InvalidRequest
from orchestrator.events import Event, EventType, timestamp
from orchestrator.runs import Run, RunRequest
from orchestrator.streamlog.log import Log
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Usage

MAX_INPUT_BYTES = 1_500_000
"""Temporal refuses payloads above 2 MB, and the input is one."""


def workflow_input(run: Run, request: RunRequest, shape: str) -> Any:
    """The workflow's one argument. Raises InvalidRequest when Temporal would not take it."""
    query = run.query or ""
    given: Any = query
    if shape == "request":
        given = {
            "run_id": run.id,
            "model": run.model,
            "query": query,
            "messages": request.body.get("messages", []),
            "body": {key: value for key, value in request.body.items() if key != "messages"},
            "session_id": run.session_id,
            "metadata": run.metadata or {},
            "context": request.context or {},
        }
    if len(msgspec.json.encode(given)) > MAX_INPUT_BYTES:
        raise InvalidRequest(
            f"The request is too large for a workflow: its input may have {MAX_INPUT_BYTES} bytes.", code="input_too_large"
        )
    return given


class ForeignRuns:
    def __init__(self, log: Log, ender: Ender, tokens: Tokenizer, clock: Clock) -> None:
        self._log = log
        self._ender = ender
        self._tokens = tokens
        self._clock = clock

    async def complete(self, run_id: str, result: Any) -> None:
        """End the run with the workflow's result, which may be anything that is JSON. Harmless when it has ended."""
        run, request = await self._log.run(run_id), await self._log.request(run_id)
        if run is None or request is None:
            return
        said = await past(self._log, run_id, run.answers[0])
        result_text = result if isinstance(result, str) else "" if result is None else msgspec.json.encode(result).decode()
        text = result_text or said.transcript.text
        output = await self._output(run, request, said)
        usage = said.usage or Usage()
        if output is not None and output.payload is not None:
            usage = usage.plus(msgspec.convert(output.payload["usage"], Usage))
        finish_reason = ((said.output.payload if said.output else None) or {}).get("finish_reason") or "stop"
        await self._ender.complete(run_id, [output] if output else [], text, usage.facts(), finish_reason)

    async def _output(self, run: Run, request: RunRequest, said: Past) -> Event | None:
        """`LLM_OUTPUT` for deltas that were never summed up: the archive keeps it and not the deltas."""
        if said.unreported.empty:
            return None
        usage = await self._tokens.usage(run.model, request.body, said.unreported.all_text())
        payload = {
            "call_id": "workflow",
            "model": run.model,
            "finish_reason": "stop",
            **said.unreported.output(),
            "usage": usage.facts(),
        }
        at = timestamp(int(self._clock.time() * 1000))
        return Event(EventType.LLM_OUTPUT, at, run.answers[0], said.unreported.text, payload)
