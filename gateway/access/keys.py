"""Who is calling: what a request shows, and on whose behalf it is therefore made.

A key comes as `Authorization: Bearer …` or as `X-API-Key`, exactly once. It is checked before anything of the body is read, and
every refusal is the same 401: nothing tells a wrong key from a malformed, a revoked or an expired one. Keys in the query are not
looked at: URLs are logged, kept and passed on. What is shown is never logged.

Keys are those of the configuration, answered from memory; those of the database (`stored`); and, where an issuer is configured,
its tokens (`tokens`). All are known by their SHA-256 only: found by a part of it, which an attacker can neither choose nor learn
from, and compared in constant time.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from multidict import MultiMapping

from gateway.access.stored import StoredKeys
from gateway.access.tokens import ISSUED, Tokens
from gateway.errors import Unauthorized
from orchestrator.keys import ID, digest_of
from orchestrator.runs import Principal, Scope


class KeyRing(Protocol):
    async def principal(self, headers: MultiMapping[str]) -> Principal:
        """On whose behalf a request with these headers is made. Raises Unauthorized; KeysUnavailable if that cannot be told."""

    async def confirm(self, principal: Principal) -> None:
        """What was found out earlier, and kept in a ticket, still holds. Raises Unauthorized, KeysUnavailable."""

    def recheck(self) -> None:
        """A stored key may have ended."""


class Open:
    """`auth.mode: off`: everybody is the one tenant. Settings refuse it unless the server is bound to loopback."""

    _everybody = Principal(tenant="default", key_id="anonymous", scopes=frozenset(Scope))

    async def principal(self, headers: MultiMapping[str]) -> Principal:
        return self._everybody

    async def confirm(self, principal: Principal) -> None:
        if principal != self._everybody:
            raise Unauthorized

    def recheck(self) -> None:
        """No key is asked for."""


class _Known(NamedTuple):
    digest: bytes
    principal: Principal


class ConfiguredKeys:
    """The keys of `auth.keys`. A principal's `key_id` is its key's name."""

    def __init__(self, keys: Iterable[tuple[str, Principal]]) -> None:
        known = [_Known(digest_of(text), principal) for text, principal in keys]
        self._by_digest = {each.digest[:8]: each for each in known}
        self._by_name = {each.principal.key_id: each.principal for each in known}

    def find(self, digest: bytes) -> Principal | None:
        known = self._by_digest.get(digest[:8])
        return known.principal if known is not None and hmac.compare_digest(known.digest, digest) else None

    def named(self, name: str) -> Principal | None:
        return self._by_name.get(name)


class Keys:
    """`auth.mode: keys`. `clock` gives seconds since the epoch."""

    def __init__(self, configured: ConfiguredKeys, stored: StoredKeys, tokens: Tokens | None, clock: Callable[[], float]) -> None:
        self._configured = configured
        self._stored = stored
        self._tokens = tokens
        self._clock = clock

    async def principal(self, headers: MultiMapping[str]) -> Principal:
        text = presented(headers)
        digest = digest_of(text)
        principal = self._configured.find(digest)
        if principal is None:
            if self._tokens is not None and text.count(".") == 2:
                principal = await self._tokens.principal(text)
            else:
                principal = await self._stored.principal(text, digest)
        return self._current(principal)

    async def confirm(self, principal: Principal) -> None:
        self._current(principal)
        if ID.fullmatch(principal.key_id):
            await self._stored.confirm(principal.key_id)
        elif not (self._tokens is not None and principal.key_id.startswith(ISSUED)):
            known = self._configured.named(principal.key_id)
            if known is None or known.tenant != principal.tenant:
                raise Unauthorized
            self._current(known)

    def recheck(self) -> None:
        self._stored.recheck()

    def _current(self, principal: Principal) -> Principal:
        if principal.expires_ms is not None and principal.expires_ms <= self._clock() * 1000:
            raise Unauthorized
        return principal


def presented(headers: MultiMapping[str]) -> str:
    """The one key in these headers. Raises Unauthorized for none, and for more."""
    bearers, bare = headers.getall("Authorization", []), headers.getall("X-API-Key", [])
    if len(bearers) + len(bare) != 1:
        raise Unauthorized
    if bare:
        return bare[0]
    scheme, _, key = bearers[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized
    return key.strip(" ")
