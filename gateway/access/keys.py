"""Who is calling: API keys.

A key comes as `Authorization: Bearer …` or as `X-API-Key`, exactly once. It is checked before anything of the body is read, in
time that does not depend on how much of it is right, and every refusal is the same 401: nothing tells a wrong key from a
malformed one. Keys are kept as SHA-256 digests and never logged.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Protocol

import msgspec
from multidict import MultiMapping

from gateway.errors import Unauthorized
from orchestrator.runs import Principal, Scope


class KeyRing(Protocol):
    async def principal(self, headers: MultiMapping[str]) -> Principal:
        """On whose behalf a request with these headers is made. Raises Unauthorized."""


class Open:
    """`auth.mode: off`: everybody is the one tenant. Settings refuse it unless the server is bound to loopback."""

    _everybody = Principal(tenant="default", key_id="anonymous", scopes=frozenset(Scope))

    async def principal(self, headers: MultiMapping[str]) -> Principal:
        return self._everybody


class _Known(msgspec.Struct, frozen=True):
    digest: bytes
    principal: Principal


class Keys:
    """`auth.mode: keys`."""

    def __init__(self, keys: Iterable[tuple[str, Principal]]) -> None:
        known = (_Known(hashlib.sha256(key.encode()).digest(), principal) for key, principal in keys)
        # Found by a prefix of the digest, which an attacker can neither choose nor learn from; the rest in constant time.
        self._known = {entry.digest[:8]: entry for entry in known}

    async def principal(self, headers: MultiMapping[str]) -> Principal:
        digest = hashlib.sha256(_presented(headers)).digest()
        entry = self._known.get(digest[:8])
        if entry is None or not hmac.compare_digest(entry.digest, digest):
            raise Unauthorized
        return entry.principal


def _presented(headers: MultiMapping[str]) -> bytes:
    """The one key in these headers, or no key at all, whose digest is that of nobody (a configured key is not empty)."""
    bearers, bare = headers.getall("Authorization", []), headers.getall("X-API-Key", [])
    if len(bearers) + len(bare) != 1:
        return b""
    if bare:
        return bare[0].encode("utf-8", "surrogateescape")
    scheme, _, key = bearers[0].partition(" ")
    return key.strip(" ").encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
