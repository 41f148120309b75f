"""What the progress routes are asked: queries of their streams, and the body that starts a plan. No I/O."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from gateway.wire.chat_request import MAX_RECORDED_BYTES, SessionId
from gateway.wire.task_bodies import Name, NativeBody, Types, Unprocessable
from orchestrator.engine import Submission
from orchestrator.streamlog.log import POSITION

MAX_RUNS = 50
"""In one merged stream."""

_RUN_ID = r"^task-[0-9a-f]{32}$"


def _truth(value: object) -> object:
    return {"true": True, "1": True, "false": False, "0": False}.get(value, value) if isinstance(value, str) else value


Truth = Annotated[bool, BeforeValidator(_truth)]
Seconds = Annotated[float, Ge(1), Le(60)]


class ProgressOptions(BaseModel):
    """How a stream of progress is told. Unknown parameters belong to somebody else."""

    enable_progress: Truth = Field(default=True, description="`false`: only the beginning and the end of the run.")
    enable_step_logs: Truth = Field(
        default=True, description="Tell what the run was asked, and what each step brought: the first 4096 characters of it."
    )
    keep_alive: Seconds = Field(default=15.0, description="Seconds of silence after which a comment is sent.")
    compress: Literal["gzip", "deflate"] | None = Field(
        default=None, description="Compress the stream, whatever the headers say; each write is flushed."
    )


class ProgressQuery(ProgressOptions):
    workflow_id: Annotated[str, MinLen(1)] = Field(description="The task whose progress is wanted.")
    last_event_id: str = Field(
        default="",
        json_schema_extra={"pattern": POSITION},
        description="The position after which to begin: a `stream_id` or `seq`. The header `Last-Event-ID` wins.",
    )


class MultiQuery(ProgressOptions):
    workflow_ids: Annotated[str, MinLen(1), MaxLen(MAX_RUNS * 40)] = Field(
        description=f"The tasks to watch, separated by commas; at most {MAX_RUNS}."
    )
    types: Types = Field(default=frozenset(), description="Only events of these types, separated by commas. Endings always come.")
    last_event_id: Annotated[str, MaxLen(MAX_RUNS * 40)] = Field(
        default="", description="The `id` of the last event received. The header `Last-Event-ID` wins."
    )
    format: Literal["events", "progress"] = Field(
        default="events", description="`events`: as `GET /api/v1/stream/sse`. `progress`: as `GET /api/v1/stream/progress`."
    )


class InlineWorkflow(NativeBody):
    """A plan of one's own. `steps` are as in the configuration's plans."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "inline"
    steps: Annotated[list[dict[str, Any]], MinLen(1), MaxLen(200)]


class ExecuteBody(NativeBody):
    """What to execute: a model of the configuration by its name, or a plan of one's own."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "headgate-demo", "input": "Say hello"}]})

    name: Name | None = Field(default=None, description="One of `GET /v1/models`. Either this or `workflow`.")
    workflow: InlineWorkflow | None = Field(
        default=None, description="A plan of one's own. Needs a key with the scope `runs:execute-inline`."
    )
    workflow_id: Annotated[str, StringConstraints(pattern=_RUN_ID)] | None = Field(
        default=None, description="The id that the task is to have: `task-` and 32 hexadecimal digits. One that exists is a 409."
    )
    input: str | dict[str, Any] | None = Field(
        default=None, description="What is asked. An object is given to templates as `context`, and to models as JSON."
    )
    session_id: SessionId | None = None
    metadata: dict[str, Any] | None = Field(default=None, description="Recorded with the task and given back.")


def execution(body: ExecuteBody, session_id: str) -> Submission:
    """Raises Unprocessable."""
    if (body.name is None) == (body.workflow is None):
        raise Unprocessable("Give either 'name' or 'workflow'.", param="name")
    if len(msgspec.json.encode(body.metadata or {})) > MAX_RECORDED_BYTES:
        raise Unprocessable(f"'metadata' is longer than {MAX_RECORDED_BYTES} bytes.", param="metadata", code="too_long")
    text = msgspec.json.encode(body.input).decode() if isinstance(body.input, dict) else body.input or ""
    inline = body.workflow
    return Submission(
        model=body.name or (inline.name if inline else ""),
        body={"messages": [{"role": "user", "content": text}]},
        session_id=session_id,
        metadata=body.metadata,
        context=body.input if isinstance(body.input, dict) else None,
        plan=None if inline is None else {"sequential": {"steps": inline.steps}},
        run_id=body.workflow_id,
    )
