"""Ends runs from outside their agents: what the workflow, the janitor and the engine do when no agent could say how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator import endings
from orchestrator.agents.history import asked_to_stop, past
from orchestrator.clock import Clock
from orchestrator.errors import Failure
from orchestrator.events import Event, encode, timestamp
from orchestrator.metrics import Metrics
from orchestrator.runs import Run, RunState
from orchestrator.spending.spending import Spending
from orchestrator.streamlog.log import Log, LogClosed, LogMissing, LogUnavailable
from orchestrator.upstreams.upstream import Usage

_WRITER = "said:ending"
"""No agent can have this name."""


class Ender:
    def __init__(self, log: Log, metrics: Metrics, clock: Clock, spending: Spending) -> None:
        self._log = log
        self._spending = spending
        self._metrics = metrics
        self._clock = clock

    async def complete(self, run_id: str, before: Sequence[Event], text: str, usage: dict[str, Any], finish_reason: str) -> bool:
        """End the run as completed, after `before`. False if it had ended already, or its log is gone."""
        return await self._complete(run_id, before, text, usage, finish_reason, None)

    async def fail(self, run_id: str, failure: Failure) -> bool:
        """End the run as failed, or, where nothing but a budget stopped it, as completed with what it has.

        False if it had ended already, or its log is gone.
        """
        before, usage = await self._spending.so_far(run_id, self._at())
        if failure.code in endings.BUDGETS:
            run = await self._log.run(run_id)
            return await self._complete(
                run_id, before, await self._said(run_id, run), (usage or Usage()).facts(), "length", failure
            )
        ending = endings.failed(self._at(), failure, None if usage is None else usage.facts())
        return await self._end(run_id, [*before, *ending], endings.failed_state(failure))

    async def cancel(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """End the run as cancelled. False if it had ended already, or its log is gone. Raises LogUnavailable.

        Who asked, and why, is taken from the log where the caller does not know.
        """
        if by is None and (asked := await asked_to_stop(self._log, run_id)) is not None:
            reason, by = asked.reason, asked.by
        before, usage = await self._spending.so_far(run_id, self._at())
        ending = endings.cancelled(self._at(), reason, by, None if usage is None else usage.facts())
        return await self._end(run_id, [*before, *ending], RunState.CANCELLED)

    async def _said(self, run_id: str, run: Run | None) -> str:
        """What the agent that answers has said so far."""
        for agent in () if run is None else run.answers:
            if text := (await past(self._log, run_id, agent)).transcript.text:
                return text
        return ""

    async def _complete(
        self,
        run_id: str,
        before: Sequence[Event],
        text: str,
        usage: dict[str, Any],
        finish_reason: str,
        budget: Failure | None,
    ) -> bool:
        run = await self._log.run(run_id)
        age_ms = 0 if run is None else int(self._clock.time() * 1000) - run.created_ms
        ending = endings.completed(
            self._at(), text=text, usage=usage, finish_reason=finish_reason, duration_ms=age_ms, budget=budget
        )
        return await self._end(run_id, [*before, *ending], RunState.COMPLETED)

    def _at(self) -> str:
        return timestamp(int(self._clock.time() * 1000))

    async def _end(self, run_id: str, ending: Sequence[Event], state: RunState) -> bool:
        bodies = [encode(event) for event in ending]
        try:
            await self._log.append(run_id, _WRITER, 1, 0, bodies, events=ending, state=state, ends=True)
        except (LogClosed, LogMissing):
            await self._log.settle(run_id)
            return False
        run = await self._ended(run_id)
        self._metrics.run_ended(state, 0.0 if run is None else self._clock.time() - run.created_ms / 1000)
        if run is not None:
            await self._spending.settle(run)
        return True

    async def _ended(self, run_id: str) -> Run | None:
        """For the statistics and the accounts: the ending stands, whatever becomes of this question."""
        try:
            return await self._log.run(run_id)
        except LogUnavailable:
            return None
