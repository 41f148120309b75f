"""By which names this server may be called where nobody needs a key.

A page of a stranger can have its own name point at this machine (DNS rebinding). To the browser it then reads from where it came
from, so nothing that browsers do for us helps, and without keys there is nothing else between the page and every run. But the
request still names the stranger's host. So, where there are no keys, only names that cannot be made to point here are answered:
addresses, `localhost`, and what the configuration names. Where there are keys a page has none, and any name will do.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from orchestrator.errors import HeadgateError


class HostNotAllowed(HeadgateError):
    """Without keys, this server answers to localhost, to addresses, and to the hosts of `server.origins` in its configuration."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"


class Hosts:
    """`named`: hosts that are configured, without ports."""

    def __init__(self, named: Iterable[str]) -> None:
        self._named = frozenset(name.lower().strip("[]") for name in named)

    def check(self, host: str) -> None:
        """`host` is a valid `Host` header. Raises HostNotAllowed."""
        name = _name(host)
        if name and name not in self._named and not _unmistakable(name):
            raise HostNotAllowed


def _name(host: str) -> str:
    """Without its port, and the dot that says that it is whole."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().removesuffix(".")


def _unmistakable(name: str) -> bool:
    """Whether nobody else can say what it means. A request without a name comes from no browser."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
