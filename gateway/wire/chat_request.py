"""The body of `POST /v1/chat/completions`: bytes in, a `ChatRequest` out, or an `InvalidRequest` that names the place.

The model below documents and checks the fields; it changes nothing. What goes upstream is the client's own JSON, so fields that
only the upstream knows arrive there verbatim. Taken out are the fields that Headgate answers itself (`model`, `stream`,
`stream_options`, `headgate_options`) and top-level nulls, which mean "not given" and which many upstreams refuse.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, StringConstraints, ValidationError, WithJsonSchema

from gateway.wire.chat_messages import MESSAGES, check_messages
from gateway.wire.json_body import parse_object
from gateway.wire.refusal import refusal
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest
from orchestrator.runs import ChatOptions

OnDisconnect = Literal["cancel", "continue"] | float

_INT64 = 2**63
Count = Annotated[int, Ge(1), Le(_INT64 - 1)]
Penalty = Annotated[float, Ge(-2), Le(2)]
Object = dict[str, Any]
SESSION_ID = r"^[!-~]{1,256}$"
SessionId = Annotated[str, StringConstraints(pattern=SESSION_ID)]

EXAMPLE: Object = {"model": "headgate-demo", "messages": [{"role": "user", "content": "Say hello"}], "stream": True}


class Checked(BaseModel):
    """No conversions: `"1"` is not a number and `1` is not true. Unknown keys are somebody else's."""

    model_config = ConfigDict(strict=True)


class StreamOptions(Checked):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class HeadgateOptions(Checked):
    """Our own part of the request. Unknown keys here are typing errors, for nobody else reads them."""

    model_config = ConfigDict(extra="forbid")

    events: bool | None = None
    stream_ids: bool | None = None
    reasoning: bool | None = Field(default=None, description="Tell what agents say that do not answer, as reasoning.")
    approvals: Literal["tool_call", "wait"] | None = Field(
        default=None,
        description="When the run waits for a decision: end the turn with a call of the tool `request_approval`, which is the "
        "default, or keep the stream open until somebody has decided.",
    )
    on_disconnect: Literal["cancel", "continue"] | Annotated[NonNegativeFloat, Le(86_400 * 7)] | None = None
    session_id: SessionId | None = None
    context: Object | None = None
    budget_tokens: Annotated[int, Ge(1), Le(10**12)] | None = None


class ToolFunction(Checked):
    name: Annotated[str, MinLen(1)]
    description: str | None = None
    parameters: Object | None = None
    strict: bool | None = None


class Tool(Checked):
    type: str
    function: ToolFunction | None = None


class JsonSchema(Checked):
    name: Annotated[str, MinLen(1)]
    schema_: Object | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Checked):
    type: str
    json_schema: JsonSchema | None = None


class ChatBody(Checked):
    """Documented request fields with their types and ranges. `messages` are checked by `chat_messages`."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: Annotated[str, MinLen(1)]
    messages: Annotated[Any, WithJsonSchema(MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    headgate_options: HeadgateOptions | None = None

    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Ge(1), Le(128)] | None = None
    temperature: Annotated[float, Ge(0), Le(2)] | None = None
    top_p: Annotated[float, Ge(0), Le(1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    seed: Annotated[int, Ge(-_INT64), Le(_INT64 - 1)] | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Ge(-100), Le(100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Ge(0), Le(20)] | None = None

    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Object | None = None
    parallel_tool_calls: bool | None = None
    functions: list[ToolFunction] | None = None
    function_call: str | Object | None = None
    response_format: ResponseFormat | None = None

    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    prediction: Object | None = None
    modalities: list[str] | None = None
    audio: Object | None = None
    web_search_options: Object | None = None
    prompt_cache_key: str | None = None

    metadata: Annotated[dict[Annotated[str, MaxLen(64)], Annotated[str, MaxLen(512)]], MaxLen(16)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    store: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """A request that may be submitted. `on_disconnect` is None unless the client gave it."""

    submission: Submission
    stream: bool = False
    on_disconnect: OnDisconnect | None = None


MAX_RECORDED_BYTES = 16 * 1024
"""What a run remembers of a request's context and metadata is read whenever runs are listed."""

_OURS = frozenset({"model", "stream", "stream_options", "headgate_options"})
_RECORDED = ("user", "safety_identifier", "store")


def parse_chat_request(raw: bytes, *, stream_ids: bool = False, session_id: str | None = None) -> ChatRequest:
    """`stream_ids` and `session_id` can be asked for by header as well. Raises InvalidRequest and nothing else."""
    if session_id is not None and not re.fullmatch(SESSION_ID, session_id):
        raise InvalidRequest("A session's id is 1 to 256 visible ASCII characters.", param="X-Session-ID")
    body = parse_object(raw)
    try:
        checked = ChatBody.model_validate(body)
    except ValidationError as error:
        raise refusal(body, error) from None
    check_messages(body["messages"])
    ours = checked.headgate_options or _NONE_OF_OURS
    streams = checked.stream_options or _NO_STREAM_OPTIONS
    options = ChatOptions(
        include_usage=bool(streams.include_usage),
        include_obfuscation=bool(streams.include_obfuscation),
        events=bool(ours.events),
        stream_ids=stream_ids or bool(ours.stream_ids),
        reasoning=bool(ours.reasoning),
        wait=ours.approvals == "wait",
    )
    submission = Submission(
        model=checked.model,
        body={name: value for name, value in body.items() if value is not None and name not in _OURS},
        options=options,
        budget_tokens=ours.budget_tokens,
        session_id=ours.session_id or session_id,
        metadata=_recorded(body, ours.context),
        context=ours.context,
    )
    return ChatRequest(submission, bool(checked.stream), ours.on_disconnect)


_NONE_OF_OURS = HeadgateOptions()
_NO_STREAM_OPTIONS = StreamOptions()


def _recorded(body: dict[str, Any], context: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the run remembers about the request: its metadata, and its context and who it was for where metadata does not say so
    itself."""
    about = {name: body[name] for name in _RECORDED if body.get(name) is not None}
    if context:
        about["context"] = context
        if len(msgspec.json.encode(context)) > MAX_RECORDED_BYTES:
            param = "headgate_options.context"
            raise InvalidRequest(f"'{param}' is longer than {MAX_RECORDED_BYTES} bytes.", param=param, code="too_long")
    return (about | (body.get("metadata") or {})) or None
