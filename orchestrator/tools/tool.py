"""A tool: something that a model can ask us to do. What it answers, and the ways in which a call comes to no answer. No I/O.

CallFailed                 the tool gave no answer; `code` says why, the message is what the model is told
├── InvalidArguments       they do not fit the schema, so the tool was not called
├── CallTimedOut
├── ToolUnavailable        its server is away, or there is no such tool (any more)
├── ToolBroken             what came back is not what it promised
└── CallInterrupted        our process was lost meanwhile, and the call is not repeated
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from orchestrator.errors import HeadgateError

if TYPE_CHECKING:
    from orchestrator.tools.schema import Schema

NAME = r"^[A-Za-z0-9_-]{1,64}$"
"""What OpenAI and those who speak like it allow."""


class Observation(msgspec.Struct, frozen=True):
    """What a tool answered. `success` is the tool's own word for it."""

    text: str
    success: bool = True


class Tool(Protocol):
    """One instance serves all agents of the process."""

    name: str
    """As models see it; `NAME` says what it may look like."""
    description: str
    schema: Schema
    """Of the arguments, which fit it when the tool is called."""
    idempotent: bool
    """Whether a call whose outcome was lost may be made again."""
    timeout_s: float | None
    """The longest a call may take. None: as the agent says."""
    max_result_bytes: int

    async def call(self, arguments: dict[str, Any]) -> Observation:
        """Do it. Cancelling gives up. Raises CallFailed, and ToolError where a function says what went wrong."""


class ToolError(Exception):
    """Raise it in a tool: its text is what the model is told, so that it can do better."""


class CallFailed(HeadgateError):
    """The tool failed."""

    status = 502
    code = "tool_failed"


class InvalidArguments(CallFailed):
    """The arguments do not fit the tool's schema, so it was not called."""

    code = "invalid_arguments"


class CallTimedOut(CallFailed):
    """The tool did not answer in time."""

    code = "tool_timeout"
    retryable = True


class ToolUnavailable(CallFailed):
    """The tool is not available."""

    status = 503
    code = "tool_unavailable"
    retryable = True


class ToolBroken(CallFailed):
    """The tool's answer is not what it promised."""

    code = "tool_protocol_error"


class CallInterrupted(CallFailed):
    """The call was interrupted, and it is not known whether it took effect."""

    code = "interrupted"


def limited(text: str, max_bytes: int) -> str:
    """The text, or as much of it as fits and a note that says so."""
    if len(text) <= max_bytes // 4:
        return text
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= max_bytes:
        return text
    kept = encoded[:max_bytes].decode("utf-8", "ignore")
    return f"{kept}\n[Cut off: the result has {len(encoded)} bytes, of which these are the first {max_bytes}.]"
