"""What is said on a native WebSocket besides events: a client's operations, the answers, and the codes it is closed with. No I/O.

A message of a client is a JSON object with an `op`. Where it names no `workflow_id`, it is about the run that the socket was
opened for. Unknown fields are refused: they would be a wish that nobody hears.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, ClassVar

import msgspec

from gateway.errors import Draining, StreamGap
from gateway.wire import websocket
from gateway.wire.event_types import wanted_types
from orchestrator.errors import Failure, HeadgateError, InvalidRequest
from orchestrator.runs import Scope
from orchestrator.streamlog.log import BEGINNING, Position, parse_position


class InvalidMessage(InvalidRequest):
    """A message is a JSON object with an 'op', in one text message."""

    code = "invalid_message"


class UnknownOperation(InvalidRequest):
    """The operations are: cancel, pause, resume, approve, subscribe, unsubscribe."""

    code = "unknown_operation"


class CloseCode(IntEnum):
    """Why a socket is closed, and so what its client should do next."""

    ENDED = 1000
    """Nothing more will come. Do not come back."""
    DRAINING = 1001
    """This server goes away. Resume elsewhere."""
    NOT_ALLOWED = 1008
    """Coming back will not help."""
    TRY_LATER = 1013
    """Something is temporarily wrong. Resume after a while."""
    GAP = 4408
    """Events are missing and nothing follows them."""


def close_code(failure: Failure | None) -> CloseCode:
    """What the last stream of a socket ended by, as the socket's close code."""
    if failure is None:
        return CloseCode.ENDED
    if failure.code == Draining.code:
        return CloseCode.DRAINING
    if failure.code == StreamGap.code:
        return CloseCode.GAP
    return CloseCode.NOT_ALLOWED if failure.status in (401, 403) else CloseCode.TRY_LATER


_Reason = Annotated[str, msgspec.Meta(max_length=1000)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_Text = Annotated[str, msgspec.Meta(max_length=10_000)]
_Seq = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op", tag=str.lower):
    workflow_id: str | None = None

    scope: ClassVar[Scope] = Scope.RUNS_WRITE
    """What the client needs for it."""


class Cancel(Operation, frozen=True):
    reason: _Reason | None = None


class Pause(Operation, frozen=True):
    reason: _Reason | None = None


class Resume(Operation, frozen=True):
    reason: _Reason | None = None


class Approve(Operation, frozen=True, kw_only=True):
    scope = Scope.APPROVALS_DECIDE

    approval_id: _Name
    approved: bool
    feedback: _Text | None = None
    modified_action: _Text | None = None


class Subscribe(Operation, frozen=True):
    scope = Scope.RUNS_READ

    last_event_id: str | _Seq | None = None
    types: list[str] = []

    @property
    def position(self) -> Position:
        """Raises InvalidPosition."""
        return BEGINNING if self.last_event_id is None else parse_position(str(self.last_event_id))

    @property
    def wanted(self) -> frozenset[str]:
        """Raises UnknownType."""
        return wanted_types(",".join(self.types))


class Unsubscribe(Operation, frozen=True):
    scope = Scope.RUNS_READ


AnyOperation = Cancel | Pause | Resume | Approve | Subscribe | Unsubscribe

_OPS = frozenset(kind.__name__.lower() for kind in (Cancel, Pause, Resume, Approve, Subscribe, Unsubscribe))
_decode: Callable[[str], AnyOperation] = msgspec.json.Decoder(AnyOperation).decode


class _Head(msgspec.Struct):
    op: Any = None


def parse_operation(message: str) -> AnyOperation:
    """Raises InvalidMessage, UnknownOperation."""
    try:
        return _decode(message)
    except msgspec.ValidationError as error:
        op = named_op(message)
        if op is None:
            raise InvalidMessage from None
        if op not in _OPS:
            raise UnknownOperation from None
        raise InvalidMessage(f"{error}.") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidMessage from None


def named_op(message: str) -> str | None:
    """The `op` of a message that may be wrong in every other respect, for the answer to it."""
    try:
        op = msgspec.json.decode(message, type=_Head).op
    except (msgspec.DecodeError, RecursionError):
        return None
    return op if isinstance(op, str) and len(op) <= 64 else None


def answer(op: str | None, run_id: str | None, error: HeadgateError | None = None) -> bytes:
    """`{"op", "ok", "workflow_id", "error": {"code", "message"}}` as one message; `error` only where there is one."""
    said: dict[str, Any] = {"op": op, "ok": error is None}
    if run_id is not None:
        said["workflow_id"] = run_id
    if error is not None:
        said["error"] = {"code": error.code, "message": error.message}
    return websocket.text(msgspec.json.encode(said))
