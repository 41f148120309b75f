"""Plans: what a model's name stands for, as a tree of steps. Validated when the configuration is loaded. No I/O.

The only step so far is `agent`; the others join the `Step` union, and `interpreter.py` matches on it.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from orchestrator.upstreams.route import AgentRoute, Route, Upstreams


class StepModel(BaseModel):
    """What all steps share: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Agent(StepModel):
    """One upstream conversation."""

    name: str = Field(default="agent", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="Its `agent_id` in events.")
    upstream: Upstreams = Field(
        description="An upstream's name, or several: the next one is tried when one fails before its first token. With weights, "
        "`{local: 3, openai: 1}`, each is the first so often; one of weight 0 only ever follows."
    )
    route: AgentRoute = Field(default=Route(), description="How patiently upstreams are asked, and whether two at once.")
    model: str | None = Field(
        default=None,
        description="The model's name at the upstream; default is the requested one (after the slash of a prefix entry).",
    )
    system: str | None = Field(default=None, description="A system prompt, put in front of the request's messages.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Request fields used where the request does not set them."
    )
    on_cut: Annotated[str, Field(pattern="^(fail|regenerate|continue)$")] = Field(
        default="fail",
        description="When the upstream breaks off mid-answer: end with an error, ask again and emit nothing until the text "
        "agrees with what was sent, or continue from the prefix (upstreams with `continues: true`; others are asked again). The "
        "next upstream is asked first, the one that broke off last.",
    )
    attempts: Annotated[int, Field(ge=1, le=20)] = Field(
        default=5, description="How often the step is tried when its worker is lost or `on_cut` allows another call."
    )
    timeout_s: PositiveFloat = Field(
        default=600.0, description="The longest the whole step may take, all its attempts together. A pause begins it anew."
    )
    tools: tuple[str, ...] = Field(
        default=(), description="What it may call: names of `tools`, whole servers or one tool of them as `server__tool`."
    )
    max_turns: Annotated[int, Field(ge=1, le=100)] = Field(
        default=10, description="So many upstream calls, each but the last with tool calls; one that wants more fails."
    )
    tool_timeout_s: PositiveFloat = Field(default=30.0, description="The longest one tool call may take.")


class Plan(StepModel):
    """A tree of steps with one root."""

    agent: Agent

    @property
    def answers(self) -> str:
        """The agent whose deltas are the run's answer."""
        return self.agent.name

    def step(self, name: str) -> Agent:
        """The agent step of this name. Raises KeyError."""
        if self.agent.name != name:
            raise KeyError(name)
        return self.agent

    def outline(self) -> dict[str, Any]:
        """The plan as plain data without what only its agents need: prompts and parameters stay beside the log."""
        return self.model_dump(mode="json", exclude={"agent": {"system", "parameters"}})

    def tools(self) -> frozenset[str]:
        """Every tool, and every server of tools, that the plan's agents list."""
        return frozenset(self.agent.tools)

    def upstreams(self) -> frozenset[str]:
        """Every upstream that the plan names."""
        return frozenset(self.agent.upstream)
