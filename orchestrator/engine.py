"""What a door may ask of the orchestrator.

Every call is made on behalf of a `Principal`; a run of another tenant is `RunNotFound`, like one that never was. Whether the
engine is in this process or behind HTTP is decided in `gateway/app.py`; a door cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import msgspec

from orchestrator.catalog import Resolved
from orchestrator.events import Entry, Gap
from orchestrator.runs import ChatOptions, Principal, Run
from orchestrator.streamlog.log import BEGINNING, Position, RunCursor
from orchestrator.upstreams.upstream import ModelCard


class Submission(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for a run. `body` is the OpenAI-shaped request as `runs.RunRequest` describes it."""

    model: str
    body: dict[str, Any]
    options: ChatOptions = ChatOptions()
    session_id: str | None = None
    metadata: dict[str, Any] | None = None


class Subscription(Protocol):
    """A reader's cursor in one run's log. Ends with the log: after STREAM_END `next` returns nothing, at once."""

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        """All that is ready after the cursor, at least one item; empty after `timeout_s` of silence, and after the end.

        A `Gap` stands where events cannot be had; what follows it, if anything, continues at `Gap.resumes_at`.
        """

    @property
    def ended(self) -> bool:
        """The last item of the log has been returned."""


class Dependency(msgspec.Struct, frozen=True):
    """One thing that the orchestrator needs: `ok`, or what is wrong. `required`: without it no request can be served."""

    ok: bool
    required: bool
    detail: str = ""


class Page(msgspec.Struct, frozen=True):
    """A page of runs, newest first; `next` continues it."""

    runs: Sequence[Run]
    next: RunCursor | None


class Engine(Protocol):
    async def submit(self, principal: Principal, submission: Submission) -> Run:
        """Start a run. When this returns, its log exists. Raises ModelNotFound, InvalidRequest, Unavailable."""

    async def get(self, principal: Principal, run_id: str) -> Run:
        """Raises RunNotFound."""

    async def list(self, principal: Principal, before: RunCursor | None = None, limit: int = 20) -> Page:
        """The tenant's runs, from the log first, then from the archive."""

    async def cancel(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        """Ask a run to stop; twice is once. Its log says when it has. Raises RunNotFound; RunConflict if it ended otherwise."""

    def subscribe(
        self, principal: Principal, run_id: str, position: Position = BEGINNING
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read a run's log after `position`, replay then live. Raises RunNotFound on entry.

        If the event that the position names does not exist, the first item is a `Gap`.
        """

    def resolve(self, model: str) -> Resolved:
        """The catalog entry behind a model name. Raises ModelNotFound."""

    async def models(self) -> Sequence[ModelCard]:
        """Every model that can be named, in a stable order; pass-through entries list what their upstreams report."""

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        """The state of each backend, each asked within a bound of two seconds."""
