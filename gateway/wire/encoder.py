"""What every door's encoder is: a fold from a run's entries to bytes, with no clock and no socket.

The bytes are a pure function of the log and of the options the stream was asked for with, so a stream can be resumed on any
replica, at any point, with identical bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap


class Encoder(Protocol):
    failure: Failure | None
    """Why the stream ends in an error, once that is known. A door that has sent nothing yet answers it as an HTTP status."""

    begun: bool
    """The answer has begun, in this response or in the part that a resuming client says it has: from then on a failure is told
    in-band. A position that is refused is a failure before the beginning, however much was folded to find that out."""

    ended: bool
    """The last frame has been returned; the body ends after it."""

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        """All frames that these items cause, in order, as one piece to write; often empty."""

    def conclude(self) -> bytes:
        """The log is closed and holds nothing after the reader's place. If the stream is complete at that, it has ended now, with
        these frames; if `ended` stays false, something is missing."""

    def keepalive(self, silent_s: float) -> bytes:
        """What to send after `silent_s` seconds in which no frame was due."""

    def interrupt(self, failure: Failure) -> bytes:
        """The frames that tell a reader why a stream breaks here although its log does not say so. It ends the stream."""
