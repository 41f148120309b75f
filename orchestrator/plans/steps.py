"""The steps that plans are made of, as the configuration says them: `{agent: {…}}`, `{sequential: [ … ]}` and so on. No I/O.

A step says its kind by its one key. Any step can hold any other. Every step has a name, by which templates, events and people
know it; who does not give one gets one (`plans.tree`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from orchestrator.upstreams.route import AgentRoute, Route, Upstreams

MAX_STEPS = 200
"""Directly in one step."""

NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class StepModel(BaseModel):
    """What all steps share: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, validate_by_alias=True)


class Agent(StepModel):
    """One upstream conversation."""

    name: str = Field(default="", pattern=NAME, description="Its `agent_id` in events.")
    answers: bool = Field(
        default=False, description="What it says is the run's answer. May be left out where the plan has one agent."
    )
    upstream: Upstreams = Field(
        description="An upstream's name, or several: the next one is tried when one fails before its first token. With weights, "
        "`{local: 3, openai: 1}`, each is the first so often; one of weight 0 only ever follows."
    )
    route: AgentRoute = Field(default=Route(), description="How patiently upstreams are asked, and whether two at once.")
    model: str | None = Field(
        default=None,
        description="The model's name at the upstream; default is the requested one (after the slash of a prefix entry).",
    )
    system: str | None = Field(
        default=None, description="A system prompt, put in front of the messages. A template, as `input` is."
    )
    input: str | None = Field(
        default=None,
        description="What the agent is asked, as a template over `input`, `messages`, `outputs` and `context`. Default: the "
        "request's messages.",
    )
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


def _several(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    if not 0 < len(steps) <= MAX_STEPS:
        raise ValueError(f"should have 1 to {MAX_STEPS} steps")
    return steps


class Sequential(StepModel):
    """Steps in order; the first that fails is the end."""

    name: str = Field(default="", pattern=NAME)
    steps: Several
    timeout_s: PositiveFloat | None = Field(default=None, description="The longest all of it may take.")


class Parallel(StepModel):
    """All branches at once."""

    name: str = Field(default="", pattern=NAME)
    branches: Several
    on_error: Literal["fail_fast", "collect"] = Field(
        default="fail_fast",
        description="`fail_fast`: the first branch that fails cancels the others, and the step fails. `collect`: the others go "
        "on, and the step fails only if all of them do.",
    )
    max_concurrency: PositiveInt | None = Field(default=None, description="So many branches at a time. None: all.")
    timeout_s: PositiveFloat | None = Field(default=None, description="The longest all of it may take.")


class Conditional(StepModel):
    """One of two steps, or none."""

    name: str = Field(default="", pattern=NAME)
    condition: str = Field(
        alias="if", min_length=1, max_length=4096, description="An expression over the same names as templates."
    )
    then: Step
    otherwise: Step | None = Field(default=None, alias="else", description="Left out: nothing happens.")


class Retry(StepModel):
    """Its step, again when it fails."""

    name: str = Field(default="", pattern=NAME)
    step: Step
    max_retries: Annotated[int, Field(ge=1, le=50)] = Field(default=2, description="How often after the first time.")
    delay_s: NonNegativeFloat = Field(default=1.0, description="Before the first repetition.")
    backoff: Annotated[float, Field(ge=1, le=10)] = Field(default=2.0, description="The next delay is so many times longer.")
    jitter: Annotated[float, Field(ge=0, le=1)] = Field(default=0.1, description="A delay is longer by up to this share of it.")


class Approval(StepModel):
    """Waits until somebody decides."""

    name: str = Field(default="", pattern=NAME)
    action: str = Field(min_length=1, description="What is to be approved, as a template.")
    reason: str | None = Field(default=None, description="Why it has to be, as a template.")
    timeout_s: PositiveFloat = Field(default=86_400.0, description="How long the decision may take.")
    on_timeout: Literal["deny", "approve"] = Field(default="deny", description="What no decision means.")


class Child(StepModel):
    """Another model of the configuration, or a Temporal workflow of your own, as a step."""

    name: str = Field(default="", pattern=NAME)
    answers: bool = Field(default=False, description="What it answers is the run's answer.")
    model: str | None = Field(default=None, min_length=1, description="A model of this configuration. Either this or `type`.")
    type: str | None = Field(default=None, min_length=1, max_length=200, description="The type of your workflow.")
    task_queue: str | None = Field(default=None, min_length=1, max_length=200, description="What your worker polls.")
    input: str | None = Field(default=None, description="What it is asked, as a template. Default: what the run was asked.")
    timeout_s: PositiveFloat = Field(default=86_400.0, description="The longest it may take.")
    plan: Step | None = Field(default=None, description="That of `model`. Headgate fills it in when a run begins.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.model is None) == (self.type is None):
            raise ValueError("needs either a model, or a type and a task_queue")
        if (self.type is None) != (self.task_queue is None):
            raise ValueError("type and task_queue belong together")
        return self


def _steps(value: object) -> object:
    return {"steps": value} if isinstance(value, list | tuple) else value


def _branches(value: object) -> object:
    return {"branches": value} if isinstance(value, list | tuple) else value


class Step(StepModel):
    """One step, under the key of its kind."""

    agent: Agent | None = None
    sequential: Annotated[Sequential | None, BeforeValidator(_steps)] = None
    parallel: Annotated[Parallel | None, BeforeValidator(_branches)] = None
    conditional: Conditional | None = None
    retry: Retry | None = None
    approval: Approval | None = None
    workflow: Child | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_kind(cls, data: Any) -> Any:
        """Before anything else: what is missing in a step that says two things is not what is wrong with it."""
        if isinstance(data, dict):
            said = [key for key in data if data[key] is not None and key in cls.model_fields]
            unknown = [key for key in data if key not in cls.model_fields]
            if len(said) != 1 and not unknown:
                found = f"has {' and '.join(said)}" if said else "has none"
                raise ValueError(f"needs exactly one of {', '.join(cls.model_fields)}; it {found}")
        return data

    @property
    def kind(self) -> Kind:
        """Its key."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def spec(self) -> Spec:
        """What stands under its key."""
        spec: Spec = getattr(self, self.kind)
        return spec


Several = Annotated[tuple[Step, ...], AfterValidator(_several)]
"""A check of our own: pydantic's would count only the valid ones, and blame the list for a mistake in a step."""

Kind = Literal["agent", "sequential", "parallel", "conditional", "retry", "approval", "workflow"]
Spec = Agent | Sequential | Parallel | Conditional | Retry | Approval | Child

KINDS: tuple[Kind, ...] = ("agent", "sequential", "parallel", "conditional", "retry", "approval", "workflow")
