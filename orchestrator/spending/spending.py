"""What runs cost: the meter of an agent while it speaks, and what is to be said and settled when a run has ended.

A call is metered only where something limits it. Everything else is counted once, in the end.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from orchestrator.agents.job import Job
from orchestrator.agents.transcript import Transcript
from orchestrator.errors import HeadgateError
from orchestrator.events import Event, EventType
from orchestrator.limits.limits import Limits, Used
from orchestrator.runs import Run
from orchestrator.spending.asking import first_step
from orchestrator.spending.ledger import spent, unreported, usage_of
from orchestrator.spending.meter import Meter
from orchestrator.spending.money import cost
from orchestrator.spending.purses import Begun, LimitsPurse, Prepaid, Purse, RunPurse
from orchestrator.streamlog.log import Log
from orchestrator.upstreams.tokens import Tokenizer
from orchestrator.upstreams.upstream import Usage

_log = logging.getLogger(__name__)

_PAGE = 512


class Spending:
    def __init__(self, log: Log, limits: Limits, tokens: Tokenizer) -> None:
        self._log = log
        self._limits = limits
        self._tokens = tokens

    def meter(self, job: Job, on_wall: Callable[[], None], notice: Callable[[dict[str, Any]], None]) -> Meter | None:
        """What counts this attempt's words. None: nothing limits it. `notice` gets the payload of `BUDGET_THRESHOLD`."""
        run = job.run
        purses: list[Purse] = []
        if run.budget_tokens is not None:
            purses.append(RunPurse(self._log, run.id, run.budget_tokens, notice))
        if run.hold is not None and run.hold.output_tokens is not None:
            purses.append(LimitsPurse(self._limits, run, _prepaid(job, run.hold.prompt_tokens, run.hold.output_tokens)))
        return Meter(purses, on_wall) if purses else None

    async def settle(self, run: Run) -> None:
        """Let what an ended run has used take the place of what was reserved for it. Doing it again has no effect.

        An archiving process does it too, so that a crash in between costs time only.
        """
        if run.hold is None or not run.hold.reserved:
            return
        try:
            await self.settle_as(run, usage_of([entry.event for entry in await self._log.kept(run.id)]))
        except HeadgateError as error:
            _log.info("a run is settled when it is archived: %s", error, extra={"workflow_id": run.id})

    async def settle_as(self, run: Run, usage: Usage | None) -> None:
        """Where what it has used is known. Raises Unavailable."""
        if run.hold is None or not run.hold.reserved:
            return
        paid = spent(run, usage)
        await self._limits.settle(run, Used(paid.prompt_tokens + paid.completion_tokens, cost(run.price, paid) or 0))

    async def so_far(self, run_id: str, at: str) -> tuple[list[Event], Usage | None]:
        """What a run has used that goes on or was lost, and `LLM_OUTPUT` for the calls that nobody could sum up, which says so.

        Raises Unavailable.
        """
        events = [event async for event in self._events(run_id)]
        outputs = await self._lost(run_id, at, unreported(events))
        return outputs, usage_of([*events, *outputs])

    async def _lost(self, run_id: str, at: str, lost: Mapping[str, Transcript]) -> list[Event]:
        request = await self._log.request(run_id) if lost else None
        if request is None:
            return []
        outputs: list[Event] = []
        for agent_id, said in lost.items():
            usage = await self._tokens.usage(request.upstream_model, request.body, said.all_text())
            payload = {
                "call_id": f"{agent_id}-lost",
                "model": request.upstream_model,
                **said.output(),
                "usage": usage.facts(),
                "aborted": True,
            }
            outputs.append(Event(EventType.LLM_OUTPUT, at, agent_id, said.text, payload))
        return outputs

    async def _events(self, run_id: str) -> AsyncIterator[Event]:
        seq = 0
        while entries := await self._log.read(run_id, seq, _PAGE):
            seq = entries[-1].seq
            for entry in entries:
                yield entry.event


def _prepaid(job: Job, prompt: int, granted: int) -> Prepaid | None:
    """What admission has paid of this attempt's first call: it reserves for the agent that answers, and for it once."""
    if job.attempt > 1 or job.step.name not in job.run.answers:
        return None
    return Prepaid(prompt, Begun(granted, granted if granted < first_step(job.request.body) else None))
