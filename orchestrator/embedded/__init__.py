"""Real Redis, Temporal and PostgreSQL as child processes, for a Headgate that was given no addresses.

    async with embedded(Path(".headgate"), redis=None, temporal=None, postgres=None, progress=print) as addresses:
        ...

Promises: all three are ready when the body starts, on loopback only, with their data under one folder that no second Headgate
can use meanwhile. A child that dies is started again on the same port. Children end with the body, in an orderly way, and with
this process even when it is killed. An address that is given is used as it is, and no child is started for it.

Does not: tune the backends for a cluster, upgrade their data, or serve anything beyond this machine.
Why it is built this way: `docs/why/2026-11-embedded-backends.md`.
"""

from orchestrator.embedded.backend import EmbeddedError
from orchestrator.embedded.backends import Addresses, Ports, embedded
from orchestrator.embedded.datadir import pids

__all__ = ["Addresses", "EmbeddedError", "Ports", "embedded", "pids"]
