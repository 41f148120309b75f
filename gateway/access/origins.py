"""Which web pages may use this server. Programs are not asked: only browsers send an `Origin`, and only browsers have to.

Two questions. `allowed`: may the browser show the answer to a page of another origin? Those that are listed may see it.
`check`: may the page do this at all? A browser lets any page open a WebSocket to any server, so the server must look. Pages of
listed origins may, and so may the server's own: those whose origin is the very host that the request names. That name proves
nothing where no key is needed, since a stranger's name can be made to point at this machine (DNS rebinding); there it must be a
name of the machine itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from multidict import MultiMapping

from gateway.errors import Forbidden

ANY = "*"


class OriginNotAllowed(Forbidden):
    """Pages of this origin may not do that here. `server.origins` of the configuration lists those that may."""

    code = "origin_not_allowed"


class Origins:
    """`listed` as browsers write them (`https://app.example.com`), or `*`. `trust_host`: callers need keys."""

    def __init__(self, listed: Iterable[str], *, trust_host: bool) -> None:
        self._listed = frozenset(origin.lower() for origin in listed)
        self._trust_host = trust_host
        self.anybody = ANY in self._listed
        self.by_origin = bool(self._listed) and not self.anybody
        """Answers differ from origin to origin."""

    def allowed(self, headers: MultiMapping[str]) -> str | None:
        """The origin of the page that may read the answer, or `*`. None: no page, or one that may not."""
        origins = headers.getall("Origin", ())
        if len(origins) != 1:
            return None
        if self.anybody:
            return ANY
        return origins[0] if origins[0].lower() in self._listed else None

    def check(self, headers: MultiMapping[str]) -> str | None:
        """The origin of the page that asks, None if it is no page. Raises OriginNotAllowed."""
        origins = headers.getall("Origin", [])
        if not origins:
            return None
        if len(origins) > 1 or not self._allows(origins[0].lower(), headers.get("Host", "").lower()):
            raise OriginNotAllowed
        return origins[0]

    def _allows(self, origin: str, host: str) -> bool:
        if self.anybody or origin in self._listed:
            return True
        try:
            own = urlsplit(origin)
            name = own.hostname
        except ValueError:
            return False
        if name is None or own.scheme not in ("http", "https") or own.netloc != host:
            return False
        return self._trust_host or _loopback(name)


def _loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
