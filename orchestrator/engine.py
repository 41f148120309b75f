"""What a door may ask of the orchestrator.

Every call is made on behalf of a `Principal`; a run of another tenant is `RunNotFound`, like one that never was. Whether the
engine is in this process or behind HTTP is decided in `gateway/app.py`; a door cannot tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import msgspec

from orchestrator.catalog import Resolved
from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap
from orchestrator.keys import ApiKey, Fingerprint, Rotated, StoredKey
from orchestrator.limits.quota import Allowance
from orchestrator.runs import ALL_RUNS, EVERYDAY, ChatOptions, Principal, Run, RunFilter, Scope
from orchestrator.spending.ledger import spent
from orchestrator.spending.money import cost
from orchestrator.spending.report import UsageQuery, UsageReport
from orchestrator.streamlog.log import BEGINNING, Position
from orchestrator.upstreams.upstream import ModelCard, Usage


class Idempotency(msgspec.Struct, frozen=True, omit_defaults=True):
    """What makes two submissions of a tenant one: the same `key`. `digest` tells whether they ask for the same.

    `anew`: this one begins a run in any case; later ones with the key are repetitions of it.
    """

    key: str
    digest: str
    anew: bool = False


CacheUse = Literal["use", "renew", "avoid"]
"""What a request wants of its model's cache: an answer that is there, a new one that others may get, or nothing to do with it."""


class Submission(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for a run. `body` and `context` are as `runs.RunRequest` describes them.

    `budget_tokens`: stop the run when it has used so many; the model may allow less. `plan` is run instead of what the catalog
    has for the model, which is then no more than a name. `run_id` is the id that the run is to have. `approve_first`: the plan
    begins when somebody has approved.
    """

    model: str
    body: dict[str, Any]
    options: ChatOptions = ChatOptions()
    session_id: str | None = None
    metadata: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    idempotency: Idempotency | None = None
    cache: CacheUse = "use"
    budget_tokens: int | None = None
    plan: dict[str, Any] | None = None
    run_id: str | None = None
    approve_first: bool = False


DEPARTED = "the client disconnected"
"""The reason of a cancellation that nobody asked for: the client that wanted the answer has gone."""


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


class Listing(msgspec.Struct, frozen=True):
    """Some of the runs that a filter lets through, newest first, and how many there are of them all."""

    runs: Sequence[Run]
    total: int


class Details(msgspec.Struct, frozen=True):
    """A run with what its ending says: the result of a completed one, the failure or the reason of another.

    `progress` is the share of its steps that have finished; 1 is completed, and nothing else is.
    """

    run: Run
    result: str | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    reason: str | None = None
    progress: float = 0.0

    @property
    def cost_nano(self) -> int | None:
        """In nano-dollars; None where no price or no usage is known."""
        return None if self.usage is None else cost(self.run.price, spent(self.run, self.usage))


class History(msgspec.Struct, frozen=True):
    """A page of a run's events after a position. `next_after` continues it; `complete`: the log is closed and this is its end."""

    entries: Sequence[Entry]
    next_after: int
    complete: bool


class ControlState(msgspec.Struct, frozen=True):
    """What was asked of a run, and what became of it. `paused_at` is RFC 3339."""

    is_paused: bool = False
    is_cancelled: bool = False
    paused_at: str | None = None
    pause_reason: str | None = None
    paused_by: str | None = None
    cancel_reason: str | None = None
    cancelled_by: str | None = None


class TimelineEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A step of the run's Temporal history in words: `WF_STARTED`, `ACT_COMPLETED`, `TIMER_FIRED`, `SIG_RECEIVED` …"""

    type: str
    timestamp: str
    event_id: int
    message: str
    details: dict[str, Any] | None = None


class PublishedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    agent_id: str | None = None
    message: str | None = None
    payload: dict[str, Any] | None = None
    timestamp: str | None = None


class Publication(msgspec.Struct, frozen=True):
    """Events that somebody outside wants in a run's log. `producer_seq` counts the writer's publications from 1.

    Types are `EventType`s or begin with `X_`; an ending closes the log. A missing timestamp becomes the time of arrival.
    """

    writer: str
    attempt: int
    producer_seq: int
    events: Sequence[PublishedEvent]


class Published(msgspec.Struct, frozen=True):
    """Where the events stand, one position each; None for types that are accepted and not stored (`HEARTBEAT`, `PING`)."""

    positions: Sequence[Position | None]
    repeated: bool


class Approval(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision that a run waits for."""

    run_id: str
    approval_id: str
    requested_at: str
    query: str | None = None
    session_id: str | None = None
    proposed_action: str | None = None
    reason: str | None = None
    expires_at: str | None = None
    metadata: dict[str, Any] | None = None


class Decision(msgspec.Struct, frozen=True):
    approval_id: str
    approved: bool
    feedback: str | None = None
    modified_action: str | None = None
    decided_by: str | None = None


class Session(msgspec.Struct, frozen=True, omit_defaults=True):
    """The runs that share a `session_id`. Times are milliseconds since the epoch."""

    id: str
    runs: int
    created_ms: int
    updated_ms: int
    title: str | None = None
    tokens: int = 0


class SessionListing(msgspec.Struct, frozen=True):
    """Some of a tenant's sessions, the latest used first, and how many there are in all."""

    sessions: Sequence[Session]
    total: int


class Engine(Protocol):
    async def submit(self, principal: Principal, submission: Submission) -> Run:
        """Start a run. When this returns, its log exists. Raises ModelNotFound, InvalidRequest, RateLimited,
        BudgetExceeded, Unavailable; RunConflict where it is to have the id of another.

        A repeated submission, by its idempotency key, gets the run that the first one began, from whichever process, unless that
        run has ended in a failure that a retry can help, or because its client left: then one of the repetitions begins another.
        One that brings the run's id along gets it however it ended. Raises IdempotencyKeyReused where it asks for something else.
        """

    async def get(self, principal: Principal, run_id: str) -> Run:
        """Raises RunNotFound."""

    async def details(self, principal: Principal, run_id: str) -> Details:
        """Raises RunNotFound."""

    async def list(self, principal: Principal, which: RunFilter = ALL_RUNS, *, offset: int = 0, limit: int = 20) -> Listing:
        """The tenant's runs, from the log and from the archive. Raises Unavailable."""

    async def cancel(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        """Ask a run to stop; twice is once. Its log says when it has. Raises RunNotFound; RunConflict if it ended otherwise."""

    async def pause(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        """Ask a run to stand still at its next safe point; its state is PAUSED only when it does.

        Raises RunNotFound; RunConflict if it is paused or has ended; Unavailable.
        """

    async def resume(self, principal: Principal, run_id: str, reason: str | None = None) -> Run:
        """Let a paused run go on, or take a pause back. Raises RunNotFound; RunConflict if it is not paused; Unavailable."""

    async def control_state(self, principal: Principal, run_id: str) -> ControlState:
        """Raises RunNotFound."""

    async def history(
        self, principal: Principal, run_id: str, *, after_seq: int = 0, limit: int = 100, types: Collection[str] = ()
    ) -> History:
        """Events as they are in the log, or in the archive when that has expired. `types` filters. Raises RunNotFound."""

    async def timeline(self, principal: Principal, run_id: str, *, full: bool = False) -> Sequence[TimelineEvent]:
        """What Temporal did for the run; empty for one that is not durable. Raises RunNotFound, Unavailable."""

    async def publish(self, principal: Principal, run_id: str, publication: Publication) -> Published:
        """Append on behalf of a producer outside, or, with `run_id/step`, of a workflow that is a step of the run's plan.

        Raises RunNotFound, InvalidRequest, LogRefused.
        """

    async def approvals(self, principal: Principal, session_id: str | None = None) -> Sequence[Approval]:
        """What the tenant's runs wait for, oldest first."""

    async def decide(self, principal: Principal, run_id: str, decision: Decision) -> None:
        """Decide an approval, once. Raises RunNotFound; RunConflict if it was decided or has expired."""

    async def sessions(self, principal: Principal, *, offset: int = 0, limit: int = 20) -> SessionListing:
        """The tenant's sessions. Raises Unavailable."""

    async def session(self, principal: Principal, session_id: str) -> Session:
        """Raises SessionNotFound, Unavailable."""

    async def title_session(self, principal: Principal, session_id: str, title: str) -> Session:
        """Raises SessionNotFound, Unavailable."""

    async def delete_session(self, principal: Principal, session_id: str) -> None:
        """Forget a session: it and its runs are no longer listed. Raises SessionNotFound, Unavailable."""

    async def usage(self, principal: Principal, query: UsageQuery) -> UsageReport:
        """What runs used that have ended: the tenant's for an administrator, those of the key that asks for others.

        Raises Unavailable.
        """

    async def create_key(
        self,
        principal: Principal,
        fingerprint: Fingerprint,
        name: str,
        scopes: frozenset[Scope] = EVERYDAY,
        expires_ms: int | None = None,
        limits: Allowance | None = None,
    ) -> ApiKey:
        """Keep a key of the caller's tenant. Doing it twice is doing it once. Raises Unavailable, as all calls about keys do."""

    async def list_keys(self, principal: Principal) -> Sequence[ApiKey]:
        """The tenant's keys, newest first, those that have ended as well."""

    async def revoke_key(self, principal: Principal, key_id: str) -> ApiKey:
        """Twice is once. Raises KeyNotFound."""

    async def rotate_key(self, principal: Principal, key_id: str, fingerprint: Fingerprint, overlap_ms: int = 0) -> Rotated:
        """A key like this one, which ends after `overlap_ms`. Raises KeyNotFound; KeyEnded if this one has ended already."""

    async def find_keys(self, prefix: str) -> Sequence[StoredKey]:
        """Of whichever tenant, all that begin so, for a door that was shown one."""

    async def key_states(self, key_ids: Sequence[str]) -> Sequence[ApiKey]:
        """How keys of whichever tenants are now, for doors that know them. One that there is not is left out."""

    async def touch_keys(self, used_ms: Mapping[str, int]) -> None:
        """Keys were used last at these times."""

    async def shared_secret(self, name: str, proposed: bytes) -> bytes:
        """The secret of this name that all replicas have: the first one that was proposed."""

    def subscribe(
        self, principal: Principal, run_id: str, position: Position = BEGINNING, *, answers: bool = False
    ) -> AbstractAsyncContextManager[Subscription]:
        """Read a run's log after `position`, replay then live. Raises RunNotFound, TooManyStreams and Unavailable on entry.

        If the event that the position names does not exist, the first item is a `Gap`. `answers`: this is the answer to the
        request that began the run, which is limited as a run and not as one more stream.
        """

    def resolve(self, model: str) -> Resolved:
        """The catalog entry behind a model name. Raises ModelNotFound."""

    async def models(self) -> Sequence[ModelCard]:
        """Every model that can be named, in a stable order; pass-through entries list what their upstreams report."""

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        """The state of each backend, each asked within a bound of two seconds."""
