"""What the OpenAI door and the server's own routes answer, as models, for the description of the API.

Their answers are written by encoders (`completion.py`, `chat_chunk.py`) that know how; tests hold the answers against these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from pydantic import BaseModel, ConfigDict, Field


class OpenAIAnswer(BaseModel):
    """Answers may have fields that only the upstream knows."""

    model_config = ConfigDict(frozen=True)


class OpenAIFailure(OpenAIAnswer):
    message: str
    type: str = Field(examples=["invalid_request_error", "server_error"])
    param: str | None = Field(description="The place in the request that is meant.")
    code: str | None


class OpenAIError(OpenAIAnswer):
    """Why a route refused or failed."""

    error: OpenAIFailure


class CompletionMessage(OpenAIAnswer):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Sequence[dict[str, Any]] | None = None


class CompletionChoice(OpenAIAnswer):
    index: int
    message: CompletionMessage
    finish_reason: str
    logprobs: dict[str, Any] | None


class CompletionUsage(OpenAIAnswer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(OpenAIAnswer):
    """The whole answer. With `stream: true` it comes as `chat.completion.chunk` events that end with `data: [DONE]`."""

    id: str = Field(examples=["chatcmpl-0197a1b2c3d47e5f8a9b0c1d2e3f4a5b"])
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: Sequence[CompletionChoice]
    usage: CompletionUsage


class RetrieveQuery(BaseModel):
    """What `routes/resume.py` reads."""

    stream: Literal["true", "false"] | None = Field(
        default=None, description="Without it, a stream is what `Accept: text/event-stream` asks for."
    )
    starting_after: Annotated[int, Ge(0), Lt(10**16)] | None = Field(
        default=None, description="How many chunks the client has received already."
    )


class CompletionCancelled(OpenAIAnswer):
    id: str
    object: Literal["chat.completion"]
    status: str


class ModelShown(OpenAIAnswer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(OpenAIAnswer):
    object: Literal["list"]
    data: Sequence[ModelShown]


class Health(OpenAIAnswer):
    status: Literal["ok"]


class DependencyShown(OpenAIAnswer):
    ok: bool
    required: bool = Field(description="Without it no request can be served.")


class Readiness(OpenAIAnswer):
    status: Literal["ready", "not_ready", "draining"]
    dependencies: Mapping[str, DependencyShown]
