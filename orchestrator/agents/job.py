"""What an agent is asked to do, and why it may be told to stop. No I/O."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from orchestrator.errors import HeadgateError
from orchestrator.plans.steps import Agent
from orchestrator.runs import Run, RunRequest
from orchestrator.upstreams.upstream import Call


class Job(msgspec.Struct, frozen=True):
    """One attempt at one agent step of a run.

    `visit` counts how often the run does the step, from 1; `attempt` outranks those of earlier attempts and visits. `messages` is
    what the agent is asked, `system` its prompt, both filled in. `fresh`: nothing of the step can be in the log yet. `final`: its
    end is the run's end, so it may close the log itself. `lease_ms` is how long the attempt holds its writer without renewing;
    when it lapses, a later attempt may take over.
    """

    run: Run
    request: RunRequest
    step: Agent
    attempt: int
    final: bool
    lease_ms: int
    visit: int = 1
    fresh: bool = False
    messages: list[dict[str, Any]] | None = None
    system: str | None = None

    @property
    def writer(self) -> str:
        return self.step.name

    def call(self, prefix: str) -> Call:
        """The request to the upstream, with the step's system prompt and parameters.

        What the client asked for, tools and formats and limits, is asked of the agent that answers it.
        """
        asked = self.request.body if self.step.name in self.run.answers else {}
        body: dict[str, Any] = {**self.step.parameters, **asked}
        messages = self.request.body.get("messages", []) if self.messages is None else self.messages
        body["messages"] = messages if self.system is None else [{"role": "system", "content": self.system}, *messages]
        model = self.step.model or self.request.upstream_model
        return Call(run_id=self.run.id, model=model, body=body, prefix=prefix, deadline_ms=self.run.deadline_ms)


class Stop(msgspec.Struct, frozen=True):
    """Why an agent is stopped from outside.

    `cancelled`: somebody asked; the run ends. `deadline`: it took too long; the run ends. `refused`: the log took the writer
    away, so nothing can be said any more. `shutdown`: this process goes down; another attempt continues if the run is durable.
    `paused`: the run is to stand still, and the upstream can continue later from what was said. `budget`: nothing is left to pay
    for more, and what was said is the answer.
    """

    kind: Literal["cancelled", "deadline", "refused", "shutdown", "paused", "budget"]
    reason: str | None = None
    by: str | None = None
    error: HeadgateError | None = None


class Interrupted(HeadgateError):
    """The attempt was interrupted; another one goes on."""

    code = "interrupted"
    retryable = True
