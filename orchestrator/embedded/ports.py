"""TCP ports on loopback for the children.

A child keeps its port while it is down, so the port must not be given away meanwhile. Ports for outgoing connections come from
the system's ephemeral range (32768 and up on Linux, 49152 on others); a client that retries a dead port in that range even ends
up connected to itself, and holds it. Hence the choice below that range.
"""

from __future__ import annotations

import errno
import random
import socket

from orchestrator.embedded.backend import HOST, EmbeddedError

_CHOICE = range(20_000, 32_768)
_ATTEMPTS = 1_000


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
    return True


def choose() -> int:
    """A port that is free now. Another process may still take it before its server listens."""
    for _ in range(_ATTEMPTS):
        port = random.choice(_CHOICE)
        if is_free(port):
            return port
    raise EmbeddedError(f"No free port between {_CHOICE.start} and {_CHOICE.stop - 1} on {HOST}. Configure fixed ports.")
