"""What proxies say of the clients behind them: the address, the scheme and the host that the client used.

`X-Forwarded-For`, `-Proto` and `-Host` are believed from the networks of `server.trusted_proxies` and from nobody else: anyone
can send them. They tell the address that is logged and the URLs that are told to clients. No decision about access looks at them.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from aiohttp import web

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

HOST = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""A host as a header may name it, RFC 3986 section 3.2.2, less the comma: two names are none."""

_MAX_HOPS = 32


class Forwarding:
    """`trusted`: the networks of proxies."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)

    def client(self, request: web.Request) -> str:
        """The client's address: that of the connection, or, if a trusted proxy is at its end, the one it speaks for."""
        peer = _peer(request)
        if not self._trusted or not self._trusts(nearest := _address(peer)):
            return peer
        # Each proxy appends whom it was called by, so what is furthest right is known best; the rest is the client's own word.
        hops = ",".join(request.headers.getall("X-Forwarded-For", [])).split(",")[-_MAX_HOPS:]
        for hop in reversed(hops):
            address = _address(hop.strip())
            if address is None:
                break
            nearest = address
            if not self._trusts(address):
                break
        return str(nearest)

    def base_url(self, request: web.Request) -> str:
        """Scheme and host as the client wrote them: what an absolute URL of this server begins with."""
        scheme, host = request.scheme, request.headers.get("Host", "")
        if self._trusted and self._trusts(_address(_peer(request))):
            told = _last(request, "X-Forwarded-Proto").lower()
            scheme = told if told in ("http", "https") else scheme
            told = _last(request, "X-Forwarded-Host")
            host = told if told and HOST.fullmatch(told) else host
        return f"{scheme}://{host}"

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


def _peer(request: web.Request) -> str:
    transport = request.transport
    name = None if transport is None else transport.get_extra_info("peername")
    return str(name[0]) if name else ""


def _last(request: web.Request, header: str) -> str:
    """What the nearest proxy said."""
    values = request.headers.getall(header, [])
    return values[-1].rpartition(",")[2].strip() if values else ""


def _address(text: str) -> Address | None:
    """`192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`. An IPv4 address in IPv6 clothes is an IPv4 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
