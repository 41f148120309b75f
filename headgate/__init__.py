"""What users import. Each name is loaded when it is first used, so that the command starts without Temporal and gRPC."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headgate import errors as errors
    from headgate.answers import Task, TaskSummary
    from headgate.async_client import AsyncClient, AsyncTaskHandle
    from headgate.async_stream import AsyncEventStream
    from headgate.client import Client, TaskHandle
    from headgate.emitting import EmitRefused, Emitting, emit, flush, say
    from headgate.errors import ClientError, Refused, ServerGone, StreamGap, TaskCancelled, TaskFailed, WaitTimedOut
    from headgate.events import Event
    from headgate.following import Backoff, Loss
    from headgate.stream import EventStream, Watch
    from headgate.tools import ToolError, tool
    from headgate.watching import AsyncWatch, Progress

_NAMES = {
    "answers": ("Task", "TaskSummary"),
    "async_client": ("AsyncClient", "AsyncTaskHandle"),
    "async_stream": ("AsyncEventStream",),
    "client": ("Client", "TaskHandle"),
    "emitting": ("EmitRefused", "Emitting", "emit", "flush", "say"),
    "errors": ("ClientError", "Refused", "ServerGone", "StreamGap", "TaskCancelled", "TaskFailed", "WaitTimedOut"),
    "events": ("Event",),
    "following": ("Backoff", "Loss"),
    "stream": ("EventStream", "Watch"),
    "tools": ("ToolError", "tool"),
    "watching": ("AsyncWatch", "Progress"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}

__all__ = [
    "AsyncClient",
    "AsyncEventStream",
    "AsyncTaskHandle",
    "AsyncWatch",
    "Backoff",
    "Client",
    "ClientError",
    "EmitRefused",
    "Emitting",
    "Event",
    "EventStream",
    "Loss",
    "Progress",
    "Refused",
    "ServerGone",
    "StreamGap",
    "Task",
    "TaskCancelled",
    "TaskFailed",
    "TaskHandle",
    "TaskSummary",
    "ToolError",
    "WaitTimedOut",
    "Watch",
    "__version__",
    "emit",
    "errors",
    "flush",
    "say",
    "tool",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("headgate.errors")
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"headgate.{home}"), name)
