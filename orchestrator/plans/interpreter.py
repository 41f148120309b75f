"""The plan interpreter: decides what runs next, and does no I/O itself.

It is plain deterministic asyncio over a `StepContext`, so the same code runs inside a Temporal workflow (where the context
schedules activities) and, for models with `durability: none`, directly in the serving process.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from orchestrator.errors import Failure
from orchestrator.plans.plan import Agent, Plan
from orchestrator.runs import RunState


class StepResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a step ended. `ended`: the step knew the run's outcome and has closed its log already."""

    state: RunState
    ended: bool
    failure: Failure | None = None
    reason: str | None = None


class StepContext(Protocol):
    """What a plan may do while it runs."""

    async def checkpoint(self, step: str) -> None:
        """A safe point before `step`: stand still here for as long as the run is paused."""

    async def run_agent(self, agent: Agent, *, final: bool) -> StepResult:
        """One upstream conversation. `final`: whatever becomes of it becomes of the run, so it may close the log itself.

        PAUSED if it broke off because the run is to be paused; run it again, and it goes on where it stopped.
        """


async def interpret(plan: Plan, context: StepContext) -> StepResult:
    """Run the plan to its end and tell how it ended."""
    while True:
        await context.checkpoint(plan.agent.name)
        result = await context.run_agent(plan.agent, final=True)
        if result.state is not RunState.PAUSED:
            return result
