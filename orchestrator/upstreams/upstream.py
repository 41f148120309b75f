"""An upstream: a model server, seen as a stream of pieces.

An upstream turns one `Call` into pieces and raises an `UpstreamError` when it cannot. It retries nothing and hides nothing:
retries before the first piece and the ordered fallback list belong to `routing.py`, takeover to the agent.
Closing the iterator (or cancelling the task that reads it) closes the upstream's socket.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar, Protocol

import msgspec

from orchestrator.errors import HeadgateError


class Call(msgspec.Struct, frozen=True):
    """One request to an upstream. `body` is OpenAI-shaped and complete but for `model`, `stream` and `stream_options`.

    `prefix` is text of the answer that the client has already; only an upstream with `continues` is given one, and it
    answers with what follows. `deadline_ms` bounds the whole call (epoch ms), on top of the upstream's own time-outs.
    """

    run_id: str
    model: str
    body: dict[str, Any]
    prefix: str = ""
    deadline_ms: int | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of one choice. Tool-call deltas are normalised: `index` always; id, type and name once per tool call.

    `function_call` is the older way to call a function, passed on as the upstream sent it.
    """

    choice: int = 0
    content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    logprobs: dict[str, Any] | None = None
    function_call: dict[str, Any] | None = None


class Finish(msgspec.Struct, frozen=True):
    """The upstream said why a choice ended: stop, length, tool_calls, content_filter or function_call."""

    choice: int
    reason: str


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of a call. `estimated`: counted here, because the upstream did not say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached: int | None = None
    reasoning: int | None = None
    estimated: bool = False

    def facts(self) -> dict[str, Any]:
        """As events say it: a count of nothing is said too, a detail that nobody knows is not."""
        details = {"cached": self.cached, "reasoning": self.reasoning}
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            **{name: count for name, count in details.items() if count is not None},
            "estimated": self.estimated,
        }

    def plus(self, other: Usage) -> Usage:
        def total(a: int | None, b: int | None) -> int | None:
            return None if a is None and b is None else (a or 0) + (b or 0)

        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.total_tokens + other.total_tokens,
            total(self.cached, other.cached),
            total(self.reasoning, other.reasoning),
            self.estimated or other.estimated,
        )


class Note(msgspec.Struct, frozen=True):
    """Something odd that did not stop the answer, for the logs and the metrics: broken_line, no_finish_reason, no_done …"""

    what: str


Piece = Delta | Finish | Usage | Note


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    created: int = 0
    owned_by: str = "upstream"


class Upstream(Protocol):
    """A model server. One instance serves all calls of the process."""

    name: str
    continues: bool
    """Whether it can continue an answer from `Call.prefix`."""

    def stream(self, call: Call) -> AsyncGenerator[Sequence[Piece], None]:
        """The answer, several pieces at a time: all that one read from the socket brought. Raises UpstreamError.

        A reader that may leave early wraps it in `contextlib.aclosing`. Usage comes at most once, last.
        """

    async def models(self) -> Sequence[ModelCard]:
        """What the upstream says it serves. Bounded in time; raises UpstreamError."""

    async def close(self) -> None: ...


class UpstreamError(HeadgateError):
    """The upstream failed."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    retryable = True
    kind: ClassVar[str] = "error"
    """Label of the metric `headgate_upstream_errors_total`."""


class UpstreamUnreachable(UpstreamError):
    """The upstream cannot be reached. Check its address and that it is running."""

    code = "upstream_unreachable"
    kind = "unreachable"


class UpstreamResting(UpstreamError):
    """The upstream has failed too often just now, so it is not asked for a while. Retry after the time that is given."""

    status = 503
    code = "upstream_unavailable"
    kind = "resting"


class UpstreamRejected(UpstreamError):
    """The upstream answered with an error status, which is passed on with its code, param and message."""

    code = "upstream_rejected"
    kind = "status"

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int = 502,
        type: str = "upstream_error",
        code: str | None = None,
        param: str | None = None,
        retryable: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, param=param, retry_after_s=retry_after_s)
        self.status, self.type, self.retryable = status, type, retryable


class UpstreamCut(UpstreamError):
    """The upstream closed the connection before its answer was complete."""

    code = "upstream_cut"
    kind = "cut"


class UpstreamSilent(UpstreamError):
    """The upstream sent nothing for too long."""

    status = 504
    code = "upstream_timeout"
    kind = "idle_timeout"


class UpstreamTooSlow(UpstreamError):
    """The upstream did not finish within the time allowed for the whole answer."""

    status = 504
    code = "upstream_deadline"
    kind = "total_timeout"
    retryable = False


class UpstreamGarbled(UpstreamError):
    """The upstream's answer is not what an OpenAI-compatible server sends."""

    code = "upstream_protocol_error"
    kind = "protocol"
