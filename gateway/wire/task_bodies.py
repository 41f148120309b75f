"""What the native routes are asked: models of their bodies and of their queries, which check requests and describe them.

A body that is not JSON is a 400; one that is JSON and says something that it cannot is a 422, and so is an unknown field, which
would otherwise be a wish that nobody hears. A query that cannot be meant is a 400; unknown parameters belong to somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from multidict import MultiMapping
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema

from gateway.wire.chat_request import MAX_RECORDED_BYTES, SessionId
from gateway.wire.event_types import TYPES, wanted_types
from gateway.wire.json_body import parse_object
from gateway.wire.refusal import refusal
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest
from orchestrator.runs import RunState

Tier = Literal["small", "medium", "large"]
Name = Annotated[str, MinLen(1), MaxLen(256)]

Body = TypeVar("Body", bound=BaseModel)
Query = TypeVar("Query", bound=BaseModel)


class Unprocessable(InvalidRequest):
    """The request is well-formed and asks for something that cannot be."""

    status = 422


class NativeBody(BaseModel):
    """No conversions, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class SubmitBody(NativeBody):
    """A task: a question to a model."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "Say hello", "model": "headgate-demo"}]})

    query: Annotated[str, StringConstraints(pattern=r"\S")] = Field(description="What is asked. The user's message.")
    session_id: SessionId | None = Field(
        default=None, description="Groups tasks. Without one the task begins a session, which `X-Session-ID` of the answer names."
    )
    context: dict[str, Any] | None = Field(
        default=None,
        description="`system_prompt`, a string, is put before the query as the system message. Everything else is recorded with "
        "the task (at most 16 KiB together with `metadata`), for the model's plan; a model sees of it what the plan shows it.",
    )
    mode: Name | None = Field(default=None, description="Recorded with the task. What a task does follows from its model.")
    model: Name | None = Field(default=None, description="One of `GET /v1/models`.")
    model_override: Name | None = Field(default=None, description="Another word for `model`; if both are given, `model` counts.")
    model_tier: Tier | None = Field(
        default=None,
        description="Without a model: the one that the configuration has for this tier, else its default.",
    )
    provider_override: Name | None = Field(default=None, description="Recorded with the task. The model decides who runs it.")
    metadata: dict[str, Any] | None = Field(default=None, description="Recorded with the task and given back.")
    require_approval: bool = Field(
        default=False, description="Begin only when somebody has approved: an approval is put in front of the model's plan."
    )
    token_budget: Annotated[int, Ge(1), Le(10**12)] | None = Field(
        default=None, description="Tokens of prompts and answers that the task may use. It then stops, with what it has."
    )


class ReasonBody(NativeBody):
    """Why something is asked of a task, for whoever reads its events. May be left out altogether."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "no longer needed"}]})

    reason: Annotated[str, MaxLen(1000)] | None = None


class DecisionBody(NativeBody):
    """The answer to a request for approval."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"workflow_id": "task-…", "approval_id": "approval-…", "approved": True}]}
    )

    workflow_id: str
    approval_id: Name
    approved: bool
    feedback: Annotated[str, MaxLen(10_000)] | None = Field(default=None, description="Given to the task and recorded.")
    modified_action: Annotated[str, MaxLen(10_000)] | None = Field(
        default=None, description="What to do instead of the proposed action."
    )


class TitleBody(NativeBody):
    """What to call a session."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"title": "Greetings"}]})

    title: Annotated[str, StringConstraints(pattern=r"\S", max_length=60)]


def _digits(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,16}", value):
        raise ValueError("a number in digits")
    return value


def _types(value: object) -> object:
    return wanted_types(value) if isinstance(value, str) else value


# The bounds stand before the validator because pydantic would not describe them behind it.
Limit = Annotated[int, Ge(1), Le(100), BeforeValidator(_digits)]
Number = Annotated[int, Ge(0), Le(10**16), BeforeValidator(_digits)]
Types = Annotated[
    frozenset[str],
    BeforeValidator(_types),
    WithJsonSchema({"type": "string", "pattern": TYPES, "examples": ["LLM_OUTPUT,WORKFLOW_COMPLETED"]}),
]


class TasksQuery(BaseModel):
    limit: Limit = 20
    offset: Number = 0
    session_id: SessionId | None = Field(default=None, description="Only the tasks of this session.")
    status: RunState | None = Field(default=None, description="Only the tasks in this state.")


class EventsQuery(BaseModel):
    after: Number = Field(default=0, description="The `seq` after which the page begins: `next_after` of the page before.")
    limit: Annotated[int, Ge(1), Le(1000), BeforeValidator(_digits)] = 100
    types: Types = Field(default=frozenset(), description="Only events of these types, separated by commas.")


class TimelineQuery(BaseModel):
    mode: Literal["summary", "full"] = Field(default="summary", description="`full` has every event and its details.")


class ApprovalsQuery(BaseModel):
    session_id: SessionId | None = Field(default=None, description="Only what the tasks of this session wait for.")


class PageQuery(BaseModel):
    limit: Limit = 20
    offset: Number = 0


class HistoryQuery(PageQuery):
    limit: Limit = 100


class TurnsQuery(PageQuery):
    limit: Limit = 10


class RedirectQuery(BaseModel):
    """Handed on to the stream."""

    types: str | None = None
    last_event_id: str | None = None
    names: str | None = None


def parse_body(model: type[Body], raw: bytes, *, required: bool = True) -> Body:
    """Raises InvalidRequest where it is not JSON, Unprocessable where it does not fit. Empty is `{}` unless `required`."""
    body = parse_object(raw) if raw.strip() or required else {}
    try:
        return model.model_validate(body)
    except ValidationError as error:
        refused = refusal(body, error)
        raise Unprocessable(refused.message, code=refused.code, param=refused.param) from None


def parse_query(model: type[Query], given: MultiMapping[str]) -> Query:
    """Raises InvalidRequest. Nothing means more than one thing: a parameter that is given twice is refused."""
    names = (field.alias or name for name, field in model.model_fields.items())
    asked = {name: values[0] for name in names if (values := _given(given, name))}
    try:
        return model.model_validate(asked)
    except ValidationError as error:
        raise refusal(asked, error) from None


def _given(given: MultiMapping[str], name: str) -> list[str]:
    values = given.getall(name, [])
    if len(values) > 1:
        raise InvalidRequest(f"'{name}' may be given only once.", param=name)
    return values


class ModelChoice(msgspec.Struct, frozen=True):
    """Which model a task gets that does not name one."""

    default: str | None
    tiers: Mapping[Tier, str]

    def of(self, task: SubmitBody) -> str:
        tiered = self.tiers.get(task.model_tier) if task.model_tier else None
        name = task.model or task.model_override or tiered or self.default
        if name is None:
            raise Unprocessable(
                "This server has no default model: name one in 'model'. GET /v1/models lists them.",
                param="model",
                code="missing_required_parameter",
            )
        return name


def submission(task: SubmitBody, model: str, session_id: str) -> Submission:
    """Raises Unprocessable."""
    context = dict(task.context or {})
    system = context.pop("system_prompt", None)
    if system is not None and not isinstance(system, str):
        raise Unprocessable("Invalid value for 'context.system_prompt': it should be a string.", code="invalid_type")
    messages = [{"role": "system", "content": system}] if system else []
    return Submission(
        model=model,
        body={"messages": [*messages, {"role": "user", "content": task.query}]},
        session_id=session_id,
        metadata=_recorded(task, context),
        budget_tokens=task.token_budget,
        context=context or None,
        approve_first=task.require_approval,
    )


def _recorded(task: SubmitBody, context: dict[str, Any]) -> dict[str, Any] | None:
    """What the run remembers of the task, where its metadata does not say so itself."""
    asked = {
        "mode": task.mode,
        "model_tier": task.model_tier,
        "provider_override": task.provider_override,
        "context": context or None,
    }
    recorded = {name: value for name, value in asked.items() if value is not None} | (task.metadata or {})
    if len(msgspec.json.encode(recorded)) > MAX_RECORDED_BYTES:
        raise Unprocessable(f"'context' and 'metadata' together are longer than {MAX_RECORDED_BYTES} bytes.", code="too_long")
    return recorded or None
