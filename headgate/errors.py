"""Everything that the client raises, in one tree.

ClientError
├── ServerGone              nobody answers, or the connection was lost
├── BadAnswer               what answered does not speak as Headgate does
├── WaitTimedOut            also a `TimeoutError`: the task has not ended in the time that was given
├── StreamGap               events of the task are no longer to be had; `resumes_at` is the next one that is
├── TaskNotCompleted        its result was asked for, and there is none
│   ├── TaskFailed          `code`, `retryable`
│   │   └── TaskTimedOut
│   └── TaskCancelled       `reason`
└── Refused                 the server answered with an error: `status`, `code`, `message`, `request_id`, `retry_after_s`
    ├── InvalidRequest      400, 413, 415, 422 and whatever else is the caller's mistake
    ├── Unauthorized        401
    ├── Forbidden           403
    ├── NotFound            404
    ├── Conflict            409
    ├── RateLimited         429
    └── ServerFailed        5xx
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class ClientError(Exception):
    """What this client raises."""


class ServerGone(ClientError):
    """No connection to the server, or none that lasts."""


class BadAnswer(ClientError):
    """Something answered that is not Headgate, or another version of it than this client understands."""


class WaitTimedOut(ClientError, TimeoutError):
    """The task has not ended in the time that was given. It goes on."""


class StreamGap(ClientError):
    """Events are missing. Both ends are positions (`seq`) and part of what is missing; None where nobody can tell.

    `resumes_at` is the next event that can be had; None if there is none. To read it nevertheless: `gaps="skip"`.
    """

    def __init__(self, missing_from: int, missing_to: int | None, resumes_at: int | None) -> None:
        self.missing_from = missing_from
        self.missing_to = missing_to
        self.resumes_at = resumes_at
        end = "on" if missing_to is None else f"to {missing_to}"
        super().__init__(f"Events from {missing_from} {end} are no longer available.")


class TaskNotCompleted(ClientError):
    """The task has ended and has no result."""


class TaskFailed(TaskNotCompleted):
    def __init__(self, message: str, code: str, retryable: bool = False) -> None:
        self.code = code
        self.retryable = retryable
        super().__init__(f"{message} ({code})")


class TaskTimedOut(TaskFailed):
    pass


class TaskCancelled(TaskNotCompleted):
    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        super().__init__(f"The run was cancelled: {reason}" if reason else "The run was cancelled.")


class Refused(ClientError):
    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.status = status
        self.message = message
        self.code = code
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        super().__init__(f"{message} ({code})" if code else message)

    @property
    def passing(self) -> bool:
        """It speaks of the server's state and not of the request: the same request may do later, or at another replica."""
        return self.status in (408, 429) or (self.status >= 500 and self.status != 501)


class InvalidRequest(Refused):
    pass


class Unauthorized(Refused):
    pass


class Forbidden(Refused):
    pass


class NotFound(Refused):
    pass


class Conflict(Refused):
    pass


class RateLimited(Refused):
    pass


class ServerFailed(Refused):
    pass


_BY_STATUS: Mapping[int, type[Refused]] = {401: Unauthorized, 403: Forbidden, 404: NotFound, 409: Conflict, 429: RateLimited}


class _Error(msgspec.Struct):
    message: str
    code: str | None = None
    request_id: str | None = None


class _Envelope(msgspec.Struct):
    error: _Error


def refusal(status: int, headers: Mapping[str, str], body: bytes = b"") -> Refused:
    """An answer with a status of 400 or more. One without our envelope comes from somebody in between."""
    try:
        error = msgspec.json.decode(body, type=_Envelope).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = _Error(f"The server answered with HTTP status {status}.")
    kind = _BY_STATUS.get(status) or (ServerFailed if status >= 500 else InvalidRequest)
    return kind(
        status,
        error.message,
        error.code,
        error.request_id or headers.get("x-request-id"),
        _seconds(headers.get("retry-after")),
    )


def _seconds(text: str | None) -> float | None:
    """A date in this header is no use to a client whose clock may be wrong."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else None
