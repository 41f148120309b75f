"""The error tree. Each class knows its HTTP status, its OpenAI `type` and `code`, and whether a retry can help.

    HeadgateError
    ├── InvalidRequest            400  the caller's mistake; `param` names the place
    │   └── InvalidPosition       400
    ├── InsufficientScope         403  the key may do other things; `scope` names what it lacks
    ├── RunNotFound               404  also another tenant's run: the two must look the same
    ├── ModelNotFound             404
    ├── SessionNotFound           404
    ├── KeyNotFound               404
    ├── RunConflict               409  the run is not in a state that allows this
    │   ├── IdempotencyKeyReused  409  one key, two bodies
    │   └── KeyEnded              409  a key that has ended cannot be replaced
    ├── PositionGone              410  the named event is no longer in the log
    ├── RateLimited               429  too much at a time; `retry_after_s`, and `quota` for the headers
    │   └── TooManyStreams        429
    ├── BudgetExceeded            429  nothing is left to spend: waiting a moment is no help
    ├── Unavailable               503  a backend is away; `retry_after_s`
    │   └── LimitsUnavailable     503
    ├── LogRefused                     an append the log must not take (see `streamlog.log`)
    └── UpstreamError                  see `upstreams.upstream`

A run that fails carries the same facts as data: `Failure`, the `error` object of `WORKFLOW_FAILED`. The two convert into
each other, so a failure looks the same whether it reached the door as an exception or through the log.
The docstring of a class is its default message; it is written for the person who has to act on it.
"""

from __future__ import annotations

from typing import Self

import msgspec

from orchestrator.limits.quota import Quota


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run failed, without internals. `status` is the HTTP status a door answers before its first byte."""

    code: str
    message: str
    retryable: bool = False
    status: int = 500
    type: str = "server_error"
    param: str | None = None
    retry_after_s: float | None = None


class HeadgateError(Exception):
    """Something went wrong inside Headgate. The request id identifies it in the logs."""

    status: int = 500
    type: str = "server_error"
    code: str = "internal_error"
    retryable: bool = False

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message or " ".join((type(self).__doc__ or "").split())
        if code is not None:
            self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        super().__init__(self.message)

    def failure(self) -> Failure:
        """The same facts as data, for the log."""
        return Failure(
            code=self.code,
            message=self.message,
            retryable=self.retryable,
            status=self.status,
            type=self.type,
            param=self.param,
            retry_after_s=self.retry_after_s,
        )


class InvalidRequest(HeadgateError):
    """The request is not valid."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidPosition(InvalidRequest):
    """A position is an event's `stream_id` (digits, '-', digits) or its `seq` (digits); empty means the beginning."""

    code = "invalid_position"


class RunNotFound(HeadgateError):
    """No such run. It may have expired, or the id is wrong."""

    status = 404
    type = "invalid_request_error"
    code = "run_not_found"


class ModelNotFound(HeadgateError):
    """The model does not exist. `GET /v1/models` lists those that do."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class SessionNotFound(HeadgateError):
    """No such session."""

    status = 404
    type = "invalid_request_error"
    code = "session_not_found"


class InsufficientScope(HeadgateError):
    """This key is not allowed to do that."""

    status = 403
    type = "invalid_request_error"
    code = "insufficient_scope"

    def __init__(self, scope: str | None = None) -> None:
        super().__init__(None if scope is None else f"This needs the scope '{scope}', which the key does not have.")
        self.scope = scope


class KeyNotFound(HeadgateError):
    """No such key."""

    status = 404
    type = "invalid_request_error"
    code = "key_not_found"


class RunConflict(HeadgateError):
    """The run is not in a state that allows this."""

    status = 409
    type = "invalid_request_error"
    code = "run_conflict"


class IdempotencyKeyReused(RunConflict):
    """This Idempotency-Key was used with a different request. Use a new key for a new request."""

    code = "idempotency_key_reused"


class KeyEnded(RunConflict):
    """This key has been revoked or has expired. Create a new one."""

    code = "key_ended"


class PositionGone(HeadgateError):
    """The event that this position names is no longer available. Read again from the beginning."""

    status = 410
    type = "invalid_request_error"
    code = "position_gone"


class RateLimited(HeadgateError):
    """Too many requests. Wait before the next one."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retryable = True
    quota: Quota | None = None


class TooManyStreams(RateLimited):
    """Too many streams are being read at a time. Close one, then try again."""

    type = "streams"
    code = "too_many_streams"


class BudgetExceeded(HeadgateError):
    """You exceeded your current quota: the budget for this period is spent."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class Unavailable(HeadgateError):
    """A backend is temporarily unavailable. Try again shortly."""

    status = 503
    type = "server_error"
    code = "backend_unavailable"
    retryable = True


class LimitsUnavailable(Unavailable):
    """Limits cannot be checked at the moment. Try again shortly."""

    code = "limits_unavailable"


class LogRefused(HeadgateError):
    """The log refused an append."""

    code = "log_refused"


class RunFailed(HeadgateError):
    """The run failed."""

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """The exception a door raises for a run whose log says that it failed."""
        error = cls(failure.message, code=failure.code, param=failure.param, retry_after_s=failure.retry_after_s)
        error.status, error.type, error.retryable = failure.status, failure.type, failure.retryable
        return error
