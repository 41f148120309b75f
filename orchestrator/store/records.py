"""A finished run as the archive keeps it, and how it becomes rows and a `Run` again. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from orchestrator.events import ENDINGS, Entry
from orchestrator.runs import Cached, ChatOptions, Run, RunState
from orchestrator.spending.ledger import read_usage, usage_of
from orchestrator.spending.money import Price, cost
from orchestrator.upstreams.upstream import Usage

Row: TypeAlias = tuple[Any, ...]

EVENT_COLUMNS = ("run_id", "seq", "ms", "type", "body")
RUN_COLUMNS = (
    "id",
    "tenant",
    "model",
    "answers",
    "durable",
    "state",
    "session_id",
    "query",
    "options",
    "metadata",
    "created_ms",
    "started_ms",
    "ended_ms",
    "deadline_ms",
    "finish_reason",
    "error",
    "cached",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "usage_estimated",
    "key_id",
    "price",
    "budget_tokens",
    "cost_nano",
    "last_seq",
    "last_ms",
)

_TYPE = len(b'{"type":"')
"""Where the name of the type begins in an event's body: `events.encode` writes fields in the order of their declaration."""


class Record(msgspec.Struct, frozen=True):
    """A run that ended, with the entries worth keeping, oldest first. `last` is the log's last entry."""

    run: Run
    entries: Sequence[Entry]
    last: Entry

    @property
    def usage(self) -> Usage | None:
        """The sum over its calls, or what its ending says; nothing, if it only said again what another had said."""
        if self.run.cached is not None:
            return None
        return usage_of(entry.event for entry in self.entries) or read_usage(self._ending().get("usage"))

    def run_row(self) -> Row:
        """Values of RUN_COLUMNS."""
        run, payload, usage = self.run, self._ending(), self.usage
        return (
            run.id,
            _text(run.tenant),
            _text(run.model),
            _text(",".join(run.answers)),
            run.durable,
            run.state.value,
            _text(run.session_id),
            _text(run.query),
            _json(run.options),
            _json(run.metadata),
            run.created_ms,
            run.started_ms,
            run.ended_ms,
            run.deadline_ms,
            _text(payload.get("finish_reason")),
            _json(payload.get("error")),
            _json(run.cached),
            *((None,) * 6 if usage is None else msgspec.structs.astuple(usage)),
            _text(run.key_id),
            _json(run.price),
            run.budget_tokens,
            cost(run.price, usage),
            self.last.seq,
            self.last.ms,
        )

    def _ending(self) -> Mapping[str, Any]:
        """How the run ended; STREAM_END directly follows it."""
        last = [entry.event for entry in self.entries[-2:]]
        return next((event.payload or {} for event in reversed(last) if event.type in ENDINGS), {})

    def event_rows(self) -> Iterator[Row]:
        """Values of EVENT_COLUMNS, a tuple for each entry."""
        run_id = self.run.id
        for entry in self.entries:
            body = entry.body
            yield run_id, entry.seq, entry.ms, body[_TYPE : body.index(b'"', _TYPE)].decode(), body


def run_of(row: Mapping[str, Any]) -> Run:
    """The run that a row of `runs` describes."""
    return Run(
        id=row["id"],
        tenant=row["tenant"],
        model=row["model"],
        answers=tuple(row["answers"].split(",")),
        created_ms=row["created_ms"],
        durable=row["durable"],
        state=RunState(row["state"]),
        options=msgspec.json.decode(row["options"], type=ChatOptions),
        session_id=row["session_id"],
        query=row["query"],
        metadata=None if row["metadata"] is None else msgspec.json.decode(row["metadata"]),
        deadline_ms=row["deadline_ms"],
        started_ms=row["started_ms"],
        ended_ms=row["ended_ms"],
        cached=None if row["cached"] is None else msgspec.json.decode(row["cached"], type=Cached),
        key_id=row["key_id"] or "",
        price=None if row["price"] is None else msgspec.json.decode(row["price"], type=Price),
        budget_tokens=row["budget_tokens"],
    )


def _text(value: object) -> str | None:
    """PostgreSQL's text cannot hold NUL or half a surrogate pair, and a client chooses some of these strings."""
    if not isinstance(value, str):
        return None
    return value if value.isprintable() else value.replace("\0", "\ufffd").encode(errors="replace").decode()


def _json(value: object) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()
