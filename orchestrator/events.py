"""Events: what a run says, in one closed set of types and one envelope for every door.

An `Event` is what a writer emits. It is encoded once, when it is appended; that encoding is the `body` of an `Entry`, the event
at its position. The envelope a client sees is the body with the position spliced in front, so no door encodes an event again.

The set of types and their meaning: `docs/reference/events.md`. No I/O here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec


class EventType(StrEnum):
    """Every type that Headgate knows. Publishers may add their own with the prefix `X_`."""

    WORKFLOW_STARTED = "WORKFLOW_STARTED"
    WORKFLOW_COMPLETED = "WORKFLOW_COMPLETED"
    WORKFLOW_FAILED = "WORKFLOW_FAILED"
    STREAM_END = "STREAM_END"
    ERROR_OCCURRED = "ERROR_OCCURRED"
    STATUS_UPDATE = "STATUS_UPDATE"

    WORKFLOW_PAUSING = "WORKFLOW_PAUSING"
    WORKFLOW_PAUSED = "WORKFLOW_PAUSED"
    WORKFLOW_RESUMED = "WORKFLOW_RESUMED"
    WORKFLOW_CANCELLING = "WORKFLOW_CANCELLING"
    WORKFLOW_CANCELLED = "WORKFLOW_CANCELLED"

    AGENT_STARTED = "AGENT_STARTED"
    AGENT_COMPLETED = "AGENT_COMPLETED"
    AGENT_FAILED = "AGENT_FAILED"
    AGENT_THINKING = "AGENT_THINKING"
    AGENT_RETRYING = "AGENT_RETRYING"

    LLM_PROMPT = "LLM_PROMPT"
    LLM_PARTIAL = "LLM_PARTIAL"
    LLM_OUTPUT = "LLM_OUTPUT"
    OUTPUT_RESET = "OUTPUT_RESET"

    TOOL_INVOKED = "TOOL_INVOKED"
    TOOL_OBSERVATION = "TOOL_OBSERVATION"
    TOOL_ERROR = "TOOL_ERROR"

    PROGRESS = "PROGRESS"
    DATA_PROCESSING = "DATA_PROCESSING"
    WAITING = "WAITING"
    TEAM_STATUS = "TEAM_STATUS"
    DEPENDENCY_SATISFIED = "DEPENDENCY_SATISFIED"
    ERROR_RECOVERY = "ERROR_RECOVERY"
    WARNING = "WARNING"
    BUDGET_THRESHOLD = "BUDGET_THRESHOLD"

    DELEGATION = "DELEGATION"
    ROLE_ASSIGNED = "ROLE_ASSIGNED"
    TEAM_RECRUITED = "TEAM_RECRUITED"
    TEAM_RETIRED = "TEAM_RETIRED"
    MESSAGE_SENT = "MESSAGE_SENT"
    MESSAGE_RECEIVED = "MESSAGE_RECEIVED"
    WORKSPACE_UPDATED = "WORKSPACE_UPDATED"
    TASKLIST_UPDATED = "TASKLIST_UPDATED"
    LEAD_DECISION = "LEAD_DECISION"
    LEAD_TOOL_CALL = "LEAD_TOOL_CALL"
    HITL_RESPONSE = "HITL_RESPONSE"

    APPROVAL_REQUESTED = "APPROVAL_REQUESTED"
    APPROVAL_DECISION = "APPROVAL_DECISION"
    RESEARCH_PLAN_READY = "RESEARCH_PLAN_READY"
    RESEARCH_PLAN_UPDATED = "RESEARCH_PLAN_UPDATED"
    RESEARCH_PLAN_APPROVED = "RESEARCH_PLAN_APPROVED"
    REVIEW_USER_FEEDBACK = "REVIEW_USER_FEEDBACK"

    STREAM_GAP = "STREAM_GAP"
    """Told to one reader, never stored: events between two positions are not to be had any more."""


ENDINGS = frozenset({EventType.WORKFLOW_COMPLETED, EventType.WORKFLOW_FAILED, EventType.WORKFLOW_CANCELLED})
"""Exactly one of these per run, directly followed by STREAM_END."""


OWN_TYPE = "X_[A-Z0-9_]{1,62}"
_OWN_TYPE = re.compile(OWN_TYPE)


def is_event_type(name: str) -> bool:
    """Whether an event can have this type: one of ours, or a publisher's own."""
    return name in EventType.__members__ or _OWN_TYPE.fullmatch(name) is not None


class Event(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing a run said. `message` is for people: the text delta of LLM_PARTIAL, the whole text of LLM_OUTPUT.

    `timestamp` is RFC 3339 in UTC with milliseconds and 'Z'. `payload` depends on the type.
    """

    type: str
    timestamp: str
    agent_id: str | None = None
    message: str | None = None
    payload: dict[str, Any] | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)

encode: Callable[[Event], bytes] = _encoder.encode
"""The one encoding of an event."""

decode: Callable[[bytes], Event] = _decoder.decode


_STAMP = b'","timestamp":"'


def restamped(body: bytes, at: str) -> bytes:
    """The encoding of the same event at another time. It begins with its type, which needs no escaping, and its time."""
    start = body.index(_STAMP) + len(_STAMP)
    return b"%b%b%b" % (body[:start], at.encode(), body[body.index(b'"', start) :])


DELTA = f'{{"type":"{EventType.LLM_PARTIAL}"'.encode()
"""How the encoding of a delta begins, and no other."""

AGENT_STARTS = f'{{"type":"{EventType.AGENT_STARTED}"'.encode()
"""How the encoding of an agent's first event begins. The script that appends to Redis knows it too."""

_END = f'{{"type":"{EventType.STREAM_END}"'.encode()


class Entry(msgspec.Struct, gc=False, eq=False):
    """An event at its position in a run's log. Decodes its body only when somebody looks inside.

    `stream_id` is `{ms}-{seq}`: the milliseconds at which the log took the event, and its dense number. A log that lost its
    tail and was written again therefore gives other ids to other events, which is what makes a resume exact.
    """

    seq: int
    ms: int
    body: bytes
    decoded: Event | None = None

    @property
    def event(self) -> Event:
        event = self.decoded
        if event is None:
            event = self.decoded = decode(self.body)
        return event

    @property
    def stream_id(self) -> str:
        return f"{self.ms}-{self.seq}"

    @property
    def is_delta(self) -> bool:
        """Told from its bytes, without decoding."""
        return self.body.startswith(DELTA)

    @property
    def is_end(self) -> bool:
        """Whether this is the entry that closes its log. Told from its bytes, without decoding."""
        return self.body.startswith(_END)

    def envelope(self, workflow_id: str) -> bytes:
        """The event as every native door sends it: one JSON object on one line. `workflow_id` needs no escaping."""
        head = f'{{"workflow_id":"{workflow_id}","seq":{self.seq},"stream_id":"{self.ms}-{self.seq}",'
        return head.encode() + self.body[1:]

    def __repr__(self) -> str:
        return f"Entry({self.stream_id} {self.body[:60]!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and (self.seq, self.ms, self.body) == (other.seq, other.ms, other.body)

    def __hash__(self) -> int:
        return hash((self.seq, self.ms))


class Gap(msgspec.Struct, frozen=True):
    """What a reader is told, in place of events, when it cannot have them. Positions are `seq`; both ends are inclusive.

    `resumes_at` is the `seq` of the next event the reader will get, or None when nothing follows.
    """

    missing_from: int
    missing_to: int | None
    resumes_at: int | None


class Timestamps:
    """RFC 3339 timestamps from a clock, formatted once per millisecond because many events share one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ms = self._second = -1
        self._prefix = self._text = ""

    def now(self) -> str:
        ms = int(self._clock() * 1000)
        if ms != self._ms:
            self._ms = ms
            second = ms // 1000
            if second != self._second:
                self._second = second
                self._prefix = _to_the_second(second)
            self._text = f"{self._prefix}{ms % 1000:03d}Z"
        return self._text


def timestamp(ms: int) -> str:
    """`ms` since the epoch as RFC 3339, UTC, milliseconds."""
    return f"{_to_the_second(ms // 1000)}{ms % 1000:03d}Z"


def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
