"""The event log: what it promises, and the types that speak of positions in it.

**Append is one atomic step.** Fence check, numbering, write, trim, expiry and notification happen together or not at all.

* `seq` is dense: 1, 2, 3 … per run. `stream_id` is `{ms}-{seq}` with the log's own clock, which never runs backwards in one run.
* Several *writers* may append to one run: a step's path, a producer's name. They do not disturb each other.
* Each append carries the writer's `attempt` and a `producer_seq` that counts its appends from 1. Repeating a `producer_seq`
  has no second effect and is answered with the positions it was given (the last `ACK_WINDOW` appends of a writer are remembered).
  Skipping one is refused: the log lost something that the writer believes it holds. A lower attempt than the writer's
  latest is refused: somebody else took over.
* An append that `ends` the run closes the log. A closed log refuses everything but the repetition of a known append.

**A claim is a lease.** An attempt holds its writer for some seconds and renews; a higher attempt may take over at once when the
lease has lapsed or was released, and is told to wait while it is live. Taking over fences the old attempt off.

**Reading** is by position. The event a position names must exist, exactly; otherwise the reader is told, never given the
continuation of something else.

**Retention.** A log expires as a whole some time after its last append; a cap on its length trims the oldest events.

Two implementations, one test-suite: `redis.py` and `memory.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from orchestrator.errors import InvalidPosition, LogRefused, Unavailable
from orchestrator.events import Entry, Event
from orchestrator.runs import Run, RunRequest, RunState

ACK_WINDOW = 16
"""How many appends of one writer are remembered, so that their repetition is answered and not applied."""


class Fenced(LogRefused):
    """A later attempt of this writer has taken over."""

    code = "fenced"


class LogClosed(LogRefused):
    """The run has ended; nothing can be added."""

    code = "log_closed"


class AppendSkipped(LogRefused):
    """The log does not hold the appends before this one: it lost its tail."""

    code = "append_skipped"


class AppendForgotten(LogRefused):
    """This append was repeated so late that its positions are no longer remembered. It was applied when first sent."""

    code = "append_forgotten"


class LogMissing(LogRefused):
    """There is no log for this run: it expired or was lost."""

    code = "log_missing"


class LogExists(LogRefused):
    """There is a log for this run already."""

    code = "log_exists"


class LogUnavailable(Unavailable):
    """The event log did not answer in time. Nothing was lost; try again shortly."""

    code = "log_unavailable"


class Position(msgspec.Struct, frozen=True):
    """A reader's place: after the event with this `seq`, and, if `ms` is known, only if that very event exists.

    `Position(0)` is the beginning.
    """

    seq: int
    ms: int | None = None

    @property
    def text(self) -> str:
        return str(self.seq) if self.ms is None else f"{self.ms}-{self.seq}"


BEGINNING = Position(0)

POSITION = "^([0-9]{1,16}(-[0-9]{1,16})?)?$"
"""What a position looks like."""

_STREAM_ID = re.compile(r"([0-9]{1,16})-([0-9]{1,16})")
_SEQ = re.compile(r"[0-9]{1,16}")


def parse_position(text: str | None) -> Position:
    """A position as clients write it: a `stream_id`, a `seq`, or nothing for the beginning. Raises InvalidPosition."""
    if not text:
        return BEGINNING
    if match := _STREAM_ID.fullmatch(text):
        return Position(int(match[2]), int(match[1]))
    if _SEQ.fullmatch(text):
        return Position(int(text))
    raise InvalidPosition


class Appended(msgspec.Struct, frozen=True):
    """Where an append's events stand: `first_seq` … `first_seq + count - 1`, all at `ms`. `repeated` if it was known already."""

    first_seq: int
    count: int
    ms: int
    repeated: bool = False


class Tail(msgspec.Struct, frozen=True):
    """The ends of a log: its last event (`seq` 0 if none), its first one that is still there, and whether it is closed."""

    seq: int
    ms: int
    first_seq: int
    closed: bool


class Claim(msgspec.Struct, frozen=True):
    """The answer to a claim. `held_ms` > 0: a lower attempt's lease is live for that long and the claim was not granted."""

    held_ms: int
    tail_seq: int


class Reservation(msgspec.Struct, frozen=True):
    """Which run a name stands for, and the digest of what was asked of it. It says nothing of whether the run exists."""

    run_id: str
    digest: str


class Spent(msgspec.Struct, frozen=True):
    """How a run's tokens stand: what this call set aside, and what all its agents have used, and set aside, altogether."""

    granted: int
    used: int
    held: int


ANY_RUN = "*"
"""In `Log.reserve`: take the name from whichever run has it."""


class Batch(msgspec.Struct, frozen=True):
    """Entries that entered a run's log together, and the event before them (`prev_seq` 0: none)."""

    run_id: str
    prev_seq: int
    prev_ms: int
    entries: Sequence[Entry]


Listener = Callable[[Batch], None]


class Log(Protocol):
    """See the module's docstring. Methods raise LogUnavailable when the store does not answer within its bound."""

    listener: Listener | None
    """Called, without awaiting, for each batch that this process appends, and for batches of watched runs from elsewhere."""

    watched: Callable[[str], None] | None
    """Called when notifications for a watched run have begun to flow: what was appended just before has to be read."""

    async def open(
        self, run: Run, request: RunRequest, bodies: Sequence[bytes], *, events: Sequence[Event] | None = None
    ) -> Appended:
        """Create the run's log with its first events, by writer `engine`, whose appends it does not count. Raises LogExists.

        A run that is over, by its state, comes with all its events, ending included: its log is opened and closed in one step.

        `events`, here and in `append`, are the decoded bodies if the caller has them, so that local readers need not decode.
        """

    async def reserve(
        self, tenant: str, name: str, wanted: Reservation, *, instead_of: str = "", keep_ms: int | None = None
    ) -> Reservation:
        """Give a tenant's name to a run that may be opened, unless another run has it already; answers which run has it now.

        One step: of many callers one gets what it wanted. `instead_of` is a run that is to lose the name, if it still has it.
        A name is remembered for `keep_ms`, or as long as a log is kept, counted from here; so a log that was opened after it
        outlives it.
        """

    async def remember(self, tenant: str, name: str) -> None:
        """Count a name's time anew. Only for a run that goes on: its log must not expire before the name does."""

    async def append(
        self,
        run_id: str,
        writer: str,
        attempt: int,
        producer_seq: int,
        bodies: Sequence[bytes],
        *,
        events: Sequence[Event] | None = None,
        state: RunState | None = None,
        ends: bool = False,
        lease_ms: int = 0,
    ) -> Appended:
        """Append encoded events in one step, moving the run to `state` if given; `ends` closes the log.

        `lease_ms` > 0 takes or renews the writer's lease for this attempt in the same step.

        `producer_seq` 0 means that the writer keeps no sequence: the append is applied whenever it arrives, so it must be
        harmless to apply twice or refused the second time (an ending is). Raises Fenced, LogClosed, AppendSkipped,
        AppendForgotten, LogMissing.
        """

    async def claim(self, run_id: str, writer: str, attempt: int, lease_ms: int) -> Claim:
        """Take or renew the writer for this attempt. `lease_ms` 0 releases it. Raises Fenced, LogClosed, LogMissing."""

    async def spend(self, run_id: str, used: int, wanted: int, most: int) -> Spent:
        """Count tokens that all agents of a run share, wherever they work.

        `used` more have been used of what was set aside before (fewer, if negative: it was less than had been thought), and up to
        `wanted` more are set aside, of `most` in all; a negative number gives them back. Applied whenever it arrives: who never
        had the answer repeats it at the risk that too much is set aside. Raises LogMissing.
        """

    async def read(self, run_id: str, after_seq: int, limit: int, *, after_ms: int | None = None) -> list[Entry]:
        """Up to `limit` entries with `seq` greater than `after_seq`, oldest first. Empty at the tail and for a missing log.

        With `after_ms` it is faster, and the event before must be that very one: where the log has lost it and another stands in
        its place, the first entry is not `after_seq + 1`, which tells the caller so.
        """

    async def kept(self, run_id: str) -> list[Entry]:
        """The run's entries without its deltas, which is what the archive keeps."""

    async def find(self, run_id: str, seq: int) -> Entry | None:
        """The entry with this `seq`, if the log still holds it."""

    async def tail(self, run_id: str) -> Tail | None:
        """The ends of the log, or None if there is none."""

    async def run(self, run_id: str) -> Run | None:
        """What the log's metadata says of the run."""

    async def request(self, run_id: str) -> RunRequest | None:
        """What was asked of the run."""

    async def lease_ms(self, run_id: str) -> int:
        """For how long some writer's lease is still live, in ms; 0 if nobody holds one."""

    def watch(self, run_id: str) -> None:
        """From soon on, hand batches that other processes append to this run to `listener`. Losing one is allowed."""

    def unwatch(self, run_id: str) -> None: ...

    async def unarchived_runs(self, tenant: str) -> list[Run]:
        """The tenant's runs that are not in the archive yet, because they go on or have just ended; newest first."""

    async def approve(self, tenant: str, run_id: str, approval_id: str, wanted: bytes | None) -> None:
        """Remember that a run waits for a decision (`wanted` describes it), or forget it (None)."""

    async def approvals(self, tenant: str) -> list[bytes]:
        """What is remembered of the decisions that the tenant's runs wait for."""

    async def active(self) -> list[str]:
        """Ids of all runs that may still be unfinished. The janitor goes through them."""

    async def unarchived(self, limit: int) -> list[str]:
        """Ids of ended runs that wait to be archived."""

    async def unarchived_count(self) -> int: ...

    async def archived(self, run_ids: Sequence[str]) -> None:
        """These runs are in the archive now."""

    async def settle(self, run_id: str) -> None:
        """A closed or missing log needs no more care: out of the active runs, and into the ones to archive if it exists."""

    async def lease(self, name: str, owner: str, ttl_ms: int) -> bool:
        """Take or renew a named lease across all processes. For work that one of them should do at a time."""

    async def publish_control(self, run_id: str, op: str) -> None:
        """Tell every process to act on a run at once (`op`: cancel). A hint: what must not be lost is also in the log."""

    def on_control(self, listener: Callable[[str, str], None]) -> None: ...

    async def ping(self) -> None:
        """Raises LogUnavailable."""

    async def close(self) -> None: ...
