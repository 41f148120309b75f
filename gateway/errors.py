"""The doors' branch of the error tree, and how any error looks to a client: envelope, status, headers.

    HeadgateError (orchestrator.errors)
    ├── Unauthorized              401  no key, or not a valid one
    │   └── AccessEnded           401  it was valid when the answer began
    ├── Forbidden                 403
    ├── InsufficientScope         403  in `orchestrator.errors`
    ├── RouteNotFound             404
    ├── MethodNotAllowed          405  `allow` names the methods
    ├── BodyTooLarge              413
    ├── UnsupportedMediaType      415
    ├── RateLimited               429  in `orchestrator.errors`
    ├── HeadersTooLarge           431
    ├── Draining                  503  this replica is going away
    ├── RunInProgress             409  the run has not ended yet; `retry_after_s`
    ├── RunCancelled              409  somebody cancelled the run
    ├── StreamGap                 410  events are missing, so the stream cannot be true
    ├── OutputReset               502  text that was sent no longer holds
    └── MalformedEvent            500  a publisher's event that a door cannot put into words

Everything here takes an exception or a `Failure`, so a run that failed and a request that failed look the same. No I/O.
"""

from __future__ import annotations

import math

import msgspec

from orchestrator.errors import Failure, HeadgateError, InsufficientScope, RateLimited
from orchestrator.limits.headers import rate_limit_headers


class Unauthorized(HeadgateError):
    """Incorrect API key provided. Send a valid key as `Authorization: Bearer <key>`."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class AccessEnded(Unauthorized):
    """The key or token that this answer was asked for with is no longer valid: it was revoked, or it has expired."""

    code = "access_ended"


class Forbidden(HeadgateError):
    """This key is not allowed to do that."""

    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class RouteNotFound(HeadgateError):
    """There is no such route. `GET /docs` shows those that there are."""

    status = 404
    type = "invalid_request_error"
    code = "route_not_found"


class MethodNotAllowed(HeadgateError):
    """This route does not take that method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"

    def __init__(self, message: str | None = None, *, allow: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allow = allow


class BodyTooLarge(HeadgateError):
    """The request body is larger than this server accepts."""

    status = 413
    type = "invalid_request_error"
    code = "body_too_large"


class UnsupportedMediaType(HeadgateError):
    """Send the body as `Content-Type: application/json`."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLarge(HeadgateError):
    """The request's headers are larger than this server accepts."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


class Draining(HeadgateError):
    """This server is shutting down. Another one will take the request."""

    status = 503
    code = "draining"
    retryable = True


class RunInProgress(HeadgateError):
    """The run has not ended yet. Ask again shortly, or read its stream."""

    status = 409
    type = "invalid_request_error"
    code = "run_in_progress"
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class RunCancelled(HeadgateError):
    """The run was cancelled."""

    status = 409
    type = "invalid_request_error"
    code = "run_cancelled"


class StreamGap(HeadgateError):
    """Events of this run are no longer available, so its stream cannot be given whole."""

    status = 410
    code = "stream_gap"


class OutputReset(HeadgateError):
    """The answer was generated again and differs from what was already sent. Discard it and ask again."""

    status = 502
    code = "output_reset"
    retryable = True


class MalformedEvent(HeadgateError):
    """The run published an event that cannot be read."""

    code = "malformed_event"


_RETRIED_ANYWAY = frozenset({408, 409, 429})
"""Statuses below 500 that the official SDKs retry unless they are told not to."""


def envelope(error: HeadgateError | Failure) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`: the body of every 4xx and 5xx, and the data of an in-band error."""
    facts = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": {name: _sendable(text) for name, text in facts.items()}})


NATIVE = ("/api/", "/stream/")
"""How the paths of the native routes begin, the second at an orchestrator that runs apart. All others answer as OpenAI's API."""


def native_envelope(error: HeadgateError | Failure, request_id: str) -> bytes:
    """`{"error": {"code", "message", "request_id"}}`: the body of every 4xx and 5xx of the native routes."""
    facts = {"code": error.code, "message": _sendable(error.message), "request_id": request_id}
    return msgspec.json.encode({"error": facts})


def headers(error: HeadgateError | Failure) -> dict[str, str]:
    """What the client should do next, for the clients that look at headers instead of bodies."""
    out: dict[str, str] = {}
    if (wait_s := error.retry_after_s) is not None:
        out["retry-after"] = str(math.ceil(wait_s))
        out["retry-after-ms"] = str(math.ceil(wait_s * 1000))
    if not error.retryable and (error.status >= 500 or error.status in _RETRIED_ANYWAY):
        out["x-should-retry"] = "false"
    if isinstance(error, RateLimited):
        out.update(rate_limit_headers(error.quota))
    if error.status == 401:
        out["www-authenticate"] = "Bearer"
    if isinstance(error, InsufficientScope) and error.scope is not None:
        out["www-authenticate"] = f'Bearer error="insufficient_scope", scope="{error.scope}"'
    if isinstance(error, MethodNotAllowed) and error.allow:
        out["allow"] = ", ".join(error.allow)
    return out


def _sendable(text: str | None) -> str | None:
    """Messages may quote what a client sent, and a lone surrogate in it must not turn the answer into another error."""
    return text if text is None else text.encode("utf-8", "replace").decode()
