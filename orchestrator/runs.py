"""Runs: one execution of a model's plan, the states it can be in, who may see it, and what was asked of it. No I/O.

On the wire a run's id is both `task_id` and `workflow_id`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from orchestrator.errors import Failure
from orchestrator.limits.quota import Allowance, Hold, Quota
from orchestrator.spending.money import Price
from orchestrator.trace import Trace


class RunState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMEOUT})

MOVES: Mapping[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.PAUSED}) | _ENDED,
    RunState.RUNNING: frozenset({RunState.RUNNING, RunState.PAUSED}) | _ENDED,
    RunState.PAUSED: frozenset({RunState.RUNNING}) | _ENDED,
    RunState.COMPLETED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.TIMEOUT: frozenset(),
}
"""Which state may follow which. A run that ended stays as it ended."""


class Scope(StrEnum):
    """What a caller may do. Routes and methods say which of these they need."""

    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    RUNS_EXECUTE_INLINE = "runs:execute-inline"
    APPROVALS_DECIDE = "approvals:decide"
    ADMIN = "admin"
    """All of the others, and the tenant's keys."""


EVERYDAY = frozenset(Scope) - {Scope.ADMIN}
"""The scopes of whoever was given none in particular."""


def scopes_named(names: Collection[str]) -> frozenset[Scope]:
    """Those that these are names of. Names of others, perhaps of a later version, are none."""
    return frozenset(scope for scope in Scope if scope in names)


class Principal(msgspec.Struct, frozen=True, omit_defaults=True):
    """On whose behalf a call is made. Everything it may see follows from its tenant, what it may do from its scopes.

    `limits` are the key's own; where it has none, those that the configuration has for every key hold.
    From `expires_ms` on (since the epoch) it is nobody any more.
    """

    tenant: str
    key_id: str
    scopes: frozenset[Scope] = EVERYDAY
    limits: Allowance | None = None
    expires_ms: int | None = None

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


class ChatOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the run's chat stream was asked for. Kept with the run, so that a resumed stream has identical bytes.

    `reasoning`: what agents say that do not answer is told as reasoning. `wait`: the stream goes on while the run waits for an
    approval, instead of ending its turn with a tool call.
    """

    include_usage: bool = False
    include_obfuscation: bool = False
    events: bool = False
    stream_ids: bool = False
    reasoning: bool = False
    wait: bool = False


class RunRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that executing a run needs, stored beside its log until both expire. Never in an event or a Temporal history.

    `body` is the OpenAI-shaped request (messages, tools, parameters …) without `model`, `stream`, `stream_options` and
    `headgate_options`. `plan` is the validated plan as plain data: a run keeps the plan that it started with.
    `upstream_model` is the model's name at the upstream, unless a step of the plan sets one. `workflow` is how a user's own
    worker is asked to run it, in which case there is no plan. `context` is what the client said about the request beside its
    prompt; no upstream sees it, unless the plan puts it into a prompt. `trace`: that of the request, for its upstream calls.
    """

    model: str
    upstream_model: str
    plan: dict[str, Any]
    body: dict[str, Any]
    workflow: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    trace: Trace | None = None


class Cached(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whose answer a run gives again: that of an earlier run of the tenant, which was asked the same, or something so similar.

    `score` is the similarity, 1 at most. None: the question was the same.
    """

    run_id: str
    score: float | None = None


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run as its log's metadata tells it. Times are milliseconds since the epoch.

    `answers` are the ids of the agents whose deltas are the answer, of which one speaks; `durable` tells whether Temporal
    executes it. `query` is the beginning of what the user asked, for people who look at a list of runs. `foreign`: a user's own
    worker executes it.
    `cached`: nothing was executed, and nothing spent, because the answer had been given before. What usage such a run tells of is
    that of the run that it repeats. `once` is by what its own repetitions know it, where they bring its id along.
    `key_id` is the key that it was asked for with. `price` is that of its model when it began, and `budget_tokens` what all its
    agents may use together; `hold` is what limits hold for it. Only in the answer to a submission are `repeated` (an earlier one
    with the same idempotency key has begun the run) and `quota` (what the caller's limits per minute let through yet).
    """

    id: str
    tenant: str
    model: str
    answers: tuple[str, ...]
    created_ms: int
    durable: bool = True
    foreign: bool = False
    state: RunState = RunState.QUEUED
    options: ChatOptions = ChatOptions()
    session_id: str | None = None
    query: str | None = None
    metadata: dict[str, Any] | None = None
    once: str | None = None
    deadline_ms: int | None = None
    started_ms: int | None = None
    ended_ms: int | None = None
    cached: Cached | None = None
    key_id: str = ""
    price: Price | None = None
    budget_tokens: int | None = None
    hold: Hold | None = None
    repeated: bool = False
    quota: Quota | None = None


class RunFilter(msgspec.Struct, frozen=True):
    """Which of a tenant's runs: those of a session, those in a state, or all."""

    session_id: str | None = None
    state: RunState | None = None

    def lets_through(self, run: Run) -> bool:
        return self.session_id in (None, run.session_id) and self.state in (None, run.state)


ALL_RUNS = RunFilter()


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a run ended, read from its ending event."""

    state: RunState
    failure: Failure | None = None
    reason: str | None = None


QUERY_CHARS = 1000
"""How much of what the user asked is kept for listings."""


def last_said(body: Mapping[str, Any]) -> str:
    """The text of the last thing that the user said; empty if there is none."""
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            return " ".join(part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str))
    return ""


_RUN_ID = re.compile(r"task-[0-9a-f]{32}")


def new_run_id(now_ms: int, random_bytes: Callable[[int], bytes]) -> str:
    """`task-` and a UUIDv7 (RFC 9562, section 5.7) in hex: sorts by creation, 74 random bits cannot be guessed."""
    random = int.from_bytes(random_bytes(10))
    value = (now_ms & (1 << 48) - 1) << 80
    value |= 0x7 << 76 | (random >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | random & (1 << 62) - 1
    return f"task-{value:032x}"


def is_run_id(text: str) -> bool:
    """Whether `text` can be a run's id at all; anything else needs no look-up and must never reach a key's name."""
    return _RUN_ID.fullmatch(text) is not None
