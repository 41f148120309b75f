"""Logs: one line per event on standard error, as JSON or for people, from structlog and from the standard library alike.

Every line carries the `request_id` and `workflow_id` of the context it was written in. Prompts, answers, keys and query
strings are never logged by this package; a traceback shows code, not the values of variables.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor


def configure(level: str = "info", style: Literal["text", "json"] = "json", stream: TextIO | None = None) -> None:
    """Send all logging of the process to `stream` (standard error). Called once, by whoever owns the process."""
    number = logging.getLevelNamesMapping()[level.upper()]
    stream = stream or sys.stderr
    render: Processor = (
        structlog.processors.JSONRenderer(serializer=_json)
        if style == "json"
        else structlog.dev.ConsoleRenderer(
            timestamp_key="time", colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        *([structlog.processors.format_exc_info] if style == "json" else []),
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


def logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines say where they come from."""
    bound: FilteringBoundLogger = structlog.get_logger(source=name)
    return bound


def _source(_: object, __: str, event: EventDict) -> EventDict:
    """The name of a standard library logger, under the same key as ours."""
    event["source"] = event["_record"].name
    return event


def _json(value: object, **_: object) -> str:
    return msgspec.json.encode(value, enc_hook=repr).decode()
