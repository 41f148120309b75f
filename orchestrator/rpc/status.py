"""Errors as gRPC statuses: the code, the text and the trailers. The same facts as an HTTP error, in gRPC's words. No I/O."""

from __future__ import annotations

import grpc

from orchestrator.errors import HeadgateError, InvalidRequest, PositionGone, RateLimited
from orchestrator.events import Gap
from orchestrator.limits.headers import rate_limit_headers

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.ABORTED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.OUT_OF_RANGE,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_MAX_DETAILS = 1000
"""Clients take a few KiB of headers; the text goes in one, with three characters for each byte outside of ASCII."""


class MalformedMessage(InvalidRequest):
    """The message cannot be decoded. Check that client and server speak of the same method."""

    code = "malformed_message"


class ClientStalled(HeadgateError):
    """The client took no message for too long. Resume from the last position."""

    status = 408
    code = "client_stalled"
    retryable = True


class EventsMissing(PositionGone):
    """Events after this position are no longer available. The trailers say which, and where the rest begins."""

    def __init__(self, gap: Gap) -> None:
        super().__init__()
        self.gap = gap


def code_of(error: HeadgateError) -> grpc.StatusCode:
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def details_of(error: HeadgateError) -> str:
    return error.message[:_MAX_DETAILS].encode("utf-8", "replace").decode("utf-8")


def trailers_of(error: HeadgateError) -> tuple[tuple[str, str], ...]:
    """What a program looks at. `grpc-retry-pushback-ms` is gRPC's own word for when to ask again (gRFC A6)."""
    trailers = [("x-error-code", error.code)]
    if error.retry_after_s is not None:
        trailers.append(("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))))
    if isinstance(error, RateLimited):
        trailers += rate_limit_headers(error.quota)
    if isinstance(error, EventsMissing):
        gap = error.gap
        places = {"x-missing-from": gap.missing_from, "x-missing-to": gap.missing_to, "x-resumes-at": gap.resumes_at}
        trailers += [(name, str(seq)) for name, seq in places.items() if seq is not None]
    return tuple(trailers)
