"""Bearer tokens of an issuer of the operator's choice: JSON Web Tokens (RFC 7519), instead of keys of ours.

Which algorithms are good is configured, never taken from a token, and each key is good for its own algorithm only: `none`, or the
issuer's public key taken for a shared secret, get nowhere (RFC 8725). A token says when it ends, for whom it is, and which tenant
its bearer belongs to; one that leaves any of it out is refused like a wrong key. It cannot be revoked: it should be short-lived.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import jwt
import msgspec
from jwt import PyJWK

from gateway.errors import Unauthorized
from orchestrator.runs import EVERYDAY, Principal, Scope, scopes_named

ISSUED = "jwt:"
"""How the `key_id` of a token's bearer begins; its subject follows."""

_MAX_CHARS = 8192
_SUBJECT = re.compile(r"[!-z|~]{1,255}")
"""Visible ASCII without braces: it becomes part of names, in logs and in Redis."""
_MAX_MS = 1 << 53
"""As far as JSON counts exactly."""
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class SigningKeys(Protocol):
    async def key(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """The issuer's key of this name for this algorithm. Raises KeysUnavailable if that cannot be told."""


class SharedSecret:
    """A secret of the issuer's and ours, which signs and proves."""

    def __init__(self, secret: str) -> None:
        self._secret = jwt.utils.base64url_encode(secret.encode()).decode()

    async def key(self, kid: str | None, algorithm: str) -> PyJWK | None:
        return PyJWK({"kty": "oct", "k": self._secret}, algorithm)


class Claims(msgspec.Struct, frozen=True):
    """What a token has to say. `scopes` names the claim with the bearer's scopes; None: all may do everything but `admin`."""

    issuer: str
    audience: str
    algorithms: Sequence[str]
    tenant: str
    scopes: str | None
    leeway_s: float


class Tokens:
    def __init__(self, claims: Claims, keys: SigningKeys) -> None:
        self._claims = claims
        self._keys = keys

    async def principal(self, token: str) -> Principal:
        """On whose behalf a bearer of this token acts. Raises Unauthorized, KeysUnavailable."""
        try:
            return await self._principal(token)
        except (jwt.PyJWTError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise Unauthorized from error  # whatever it is that somebody sends

    async def _principal(self, token: str) -> Principal:
        claims = self._claims
        if len(token) > _MAX_CHARS:
            raise Unauthorized
        header = jwt.get_unverified_header(token)
        kid, algorithm = header.get("kid"), header["alg"]
        if algorithm not in claims.algorithms:
            raise Unauthorized
        key = await self._keys.key(kid, algorithm)
        if key is None:
            raise Unauthorized
        said = jwt.decode(
            token,
            key,
            [algorithm],
            audience=claims.audience,
            issuer=claims.issuer,
            leeway=claims.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
        )
        subject, tenant = said["sub"], said[claims.tenant]
        if not _SUBJECT.fullmatch(subject) or not _TENANT.fullmatch(tenant):
            raise Unauthorized
        expires_ms = int((said["exp"] + claims.leeway_s) * 1000)
        if expires_ms >= _MAX_MS:
            raise Unauthorized
        return Principal(tenant, ISSUED + subject, _scopes(said, claims.scopes), expires_ms=expires_ms)


def _scopes(said: dict[str, Any], claim: str | None) -> frozenset[Scope]:
    """Those that it names, in a list or in one string (RFC 8693, 4.2). A token that names none may do nothing."""
    if claim is None:
        return EVERYDAY
    named = said.get(claim, ())
    return scopes_named(named.split() if isinstance(named, str) else named)
