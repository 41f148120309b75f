"""W3C trace context: the trace that a request belongs to, from the client's headers to the upstream's. A call's metadata are
headers.

    traceparent: 00-<trace id, 32 hex digits>-<parent id, 16 hex digits>-<flags, 2 hex digits>

What came in goes out unchanged, which is what the standard asks of whoever records no spans of its own: the spans of the upstream
hang below those of the client. A request without a trace begins none, so that the upstream's own sampling decides. Whatever is
not valid is as if it had not been sent (https://www.w3.org/TR/trace-context/, section 3).

This is where spans would be made, if a tracer came: `carried` is what crosses to other processes, `current` what is handed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")
_NO_TRACE, _NO_PARENT = "0" * 32, "0" * 16


class Trace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A valid `traceparent`, and the `tracestate` that belongs to it."""

    parent: str
    state: str = ""

    @property
    def id(self) -> str:
        return self.parent[3:35]

    def headers(self) -> dict[str, str]:
        named = {"traceparent": self.parent}
        return {**named, "tracestate": self.state} if self.state else named


def parse(parents: Sequence[str], states: Sequence[str] = ()) -> Trace | None:
    """From the values of both headers, as often as they were sent. None unless there is exactly one valid `traceparent`."""
    if len(parents) != 1 or (match := _TRACEPARENT.fullmatch(parents[0])) is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or parent_id == _NO_PARENT or (version == "00" and more):
        return None
    state = ",".join(states)
    # A later version is passed on as the one that is understood here.
    return Trace(f"00-{trace_id}-{parent_id}-{flags}", state if _TRACESTATE.fullmatch(state) else "")


_current: ContextVar[Trace | None] = ContextVar("headgate_trace", default=None)


def current() -> Trace | None:
    """That of the request or the run that is being worked on."""
    return _current.get()


def carried() -> dict[str, str]:
    """The headers of the current trace, for requests to others."""
    trace = _current.get()
    return {} if trace is None else trace.headers()


def enter(trace: Trace | None) -> None:
    """From here on, in this task and those that it starts, this is the trace."""
    _current.set(trace)


@contextmanager
def inside(trace: Trace | None) -> Iterator[None]:
    before = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(before)
