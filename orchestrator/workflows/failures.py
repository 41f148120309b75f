"""What a user's own workflow failed with, in the words that its users are told. No I/O."""

from __future__ import annotations

from temporalio.exceptions import ApplicationError, TimeoutError

from orchestrator import endings
from orchestrator.errors import Failure


def failure_of(error: BaseException) -> Failure:
    """The innermost failure has the words."""
    cause = error
    while (deeper := cause.__cause__) is not None:
        cause = deeper
    if isinstance(cause, TimeoutError):
        return endings.TIMEOUT
    code = cause.type if isinstance(cause, ApplicationError) else None
    return endings.of_workflow(code, getattr(cause, "message", None) or str(cause))
