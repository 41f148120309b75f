"""Logs: one line per event on standard error, as JSON or for people, from structlog and from the standard library alike.

Every line carries the `request_id`, `workflow_id` and `trace_id` of the context it was written in. Prompts, answers, keys and
query strings are never logged by this package; a traceback shows code, not the values of variables.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from orchestrator import trace

Format = Literal["auto", "text", "json"]


def configure(level: str = "info", format: Format = "json", stream: TextIO | None = None) -> None:
    """Send all logging of the process to `stream` (standard error). Called once, by whoever owns the process.

    `auto` is text where a person reads along, on a terminal, and JSON elsewhere.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = stream or sys.stderr
    text = stream.isatty() if format == "auto" else format == "text"
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    render: Processor = _Lines(colors) if text else structlog.processors.JSONRenderer(serializer=_json)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        traced,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper("%H:%M:%S" if text else "iso", utc=not text, key="time"),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_source, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                render,
            ],
        )
    )
    logging.basicConfig(level=number, handlers=[handler], force=True)
    # It logs what it cannot read, which may be what a tool answered.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    # What the SDK tells at this level, it tells of every worker's start and end.
    logging.getLogger("temporalio").setLevel(number if number < logging.INFO else max(number, logging.WARNING))


def logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines say where they come from."""
    bound: FilteringBoundLogger = structlog.get_logger(source=name)
    return bound


def traced(_: object, __: str, event: EventDict) -> EventDict:
    """The trace that is being followed, whichever door it came in by."""
    if (followed := trace.current()) is not None:
        event["trace_id"] = followed.id
    return event


def _source(_: object, __: str, event: EventDict) -> EventDict:
    """The name of a standard library logger, under the same key as ours."""
    event["source"] = event["_record"].name
    return event


def _json(event: EventDict, **_: object) -> str:
    """What everybody looks for first comes first."""
    first = {name: event[name] for name in ("time", "level", "event") if name in event}
    return msgspec.json.encode(first | dict(event), enc_hook=repr).decode()


class _Lines:
    """One line for people: when, how bad, what, and the facts. A request is told by its facts, as access logs do."""

    def __init__(self, colors: bool) -> None:
        self._dim, self._bad, self._end = ("\x1b[2m", "\x1b[31m", "\x1b[0m") if colors else ("", "", "")

    def __call__(self, _: object, __: str, event: EventDict) -> str:
        facts = dict(event)
        time, level, what, traceback = (facts.pop(name, "") for name in ("time", "level", "event", "exception"))
        if what == "request":
            what = " ".join(str(facts.pop(name, "-")) for name in ("method", "route", "status"))
            facts.pop("source", None)
            if "workflow_id" in facts:  # says which request it was better than the request's own number
                facts.pop("request_id", None)
        what = _tamed(str(what))
        shown = " ".join(f"{name}={_tamed(str(value))}" for name, value in facts.items())
        mark = "" if level in ("debug", "info") else f"{self._bad}{level}{self._end} "
        line = f"{self._dim}{time}{self._end} {mark}{what}" + (f"  {self._dim}{shown}{self._end}" if shown else "")
        return f"{line}\n{traceback}" if traceback else line


def _tamed(text: str) -> str:
    """What a client sent may be in it, and must not command the terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
