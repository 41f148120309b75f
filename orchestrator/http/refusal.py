"""An error on its way between processes: it becomes the same exception, with the same facts, on the other side. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from orchestrator.errors import Failure, HeadgateError, RateLimited
from orchestrator.limits.quota import Quota


class Refusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """`kind` is the name of the exception's class."""

    kind: str
    failure: Failure
    quota: Quota | None = None


def pack(error: HeadgateError) -> bytes:
    quota = error.quota if isinstance(error, RateLimited) else None
    return msgspec.json.encode(Refusal(type(error).__name__, error.failure(), quota))


def unpack(body: bytes) -> HeadgateError | None:
    """The exception to raise; None if these bytes are not a refusal. A kind that is not known here keeps its facts."""
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    kinds = {kind.__name__: kind for kind in _kinds(HeadgateError)}
    failure, kind = refusal.failure, kinds.get(refusal.kind, HeadgateError)
    error = kind.__new__(kind)  # some take other arguments
    HeadgateError.__init__(error, failure.message, code=failure.code, param=failure.param, retry_after_s=failure.retry_after_s)
    error.status, error.type, error.retryable = failure.status, failure.type, failure.retryable
    if isinstance(error, RateLimited):
        error.quota = refusal.quota
    return error


def _kinds(kind: type[HeadgateError]) -> Iterator[type[HeadgateError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
