"""Whether a request may come in, and on whose behalf: the rule of its route, met with a key, a ticket, or a gateway's word.

Two implementations of `edge.Admission`. `Outside` is for clients. `Inside` is for the app of an orchestrator that runs apart,
where only gateways call: they have found out who the caller is and sign what they say.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from gateway.access.keys import KeyRing
from gateway.access.rules import Access
from gateway.access.tickets import Ticket, Tickets
from gateway.edge import CLAIMS, PRINCIPAL, REQUEST_ID, TICKET
from gateway.errors import Forbidden, Unauthorized
from orchestrator.access import allow
from orchestrator.signing import HEADER, SignatureRefused, Signer


class InternalHeader(Forbidden):
    """The header X-Headgate-Internal is for Headgate's own processes. Clients have no use for it."""

    code = "internal_header"


class Outside:
    """`access` has the rule of every route."""

    def __init__(self, keys: KeyRing, tickets: Tickets, access: Mapping[web.AbstractRoute, Access]) -> None:
        self._keys = keys
        self._tickets = tickets
        self._access = access

    async def admit(self, request: web.Request) -> None:
        if HEADER in request.headers:
            raise InternalHeader
        rule = self._access[request.match_info.route]
        if rule is Access.STREAM and "ticket" in request.query:
            ticket = request[TICKET] = await self._ticket(request)
            principal = request[PRINCIPAL] = ticket.principal
        elif rule is not Access.ANYBODY:
            principal = request[PRINCIPAL] = await self._keys.principal(request.headers)
        else:
            return
        allow(principal, rule.scope)

    async def _ticket(self, request: web.Request) -> Ticket:
        """The one ticket of a request that has no key as well: it must be clear on whose behalf it comes."""
        presented = request.query.getall("ticket")
        if len(presented) != 1 or "Authorization" in request.headers or "X-API-Key" in request.headers:
            raise Unauthorized
        ticket = await self._tickets.honour(presented[0])
        await self._keys.confirm(ticket.principal)
        return ticket


class Inside:
    """Whoever scrapes numbers cannot sign: for `Access.OPERATOR` a key is good, as it is outside."""

    def __init__(self, signer: Signer, operators: KeyRing, access: Mapping[web.AbstractRoute, Access]) -> None:
        self._signer = signer
        self._operators = operators
        self._access = access

    async def admit(self, request: web.Request) -> None:
        match rule := self._access[request.match_info.route]:
            case Access.ANYBODY:
                return
            case Access.OPERATOR:
                request[PRINCIPAL] = await self._operators.principal(request.headers)
            case _:
                self._check(request)
        allow(request[PRINCIPAL], rule.scope)

    def _check(self, request: web.Request) -> None:
        presented = request.headers.getall(HEADER, [])
        if len(presented) != 1:
            raise SignatureRefused
        claims = request[CLAIMS] = self._signer.verify(request.method, request.raw_path, presented[0])
        if claims.request_id != request[REQUEST_ID]:
            raise SignatureRefused
        request[PRINCIPAL] = claims.principal
        if claims.only_run is not None:
            request[TICKET] = Ticket(claims.principal, claims.signed_ms, claims.only_run)
