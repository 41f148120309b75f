"""The signed header between a gateway and its orchestrator: on whose behalf a request is made, as the gateway has found out.

    X-Headgate-Internal: <claims>.<HMAC-SHA256 of method, target and claims>

Claims are JSON in base64url: the principal, the request's id, when it was signed, and the body's digest. The target is the path
and the query as they travel. A header that is missing, older than `SKEW_S`, made for another request or with another secret is
refused, always alike. Whoever reads a body asks `Claims.cover` about it.

It proves who asks for what, not that nobody listens: who can read the requests can send the same ones again within `SKEW_S`, and
could read the answers anyway. Between machines, use it over TLS or a network of one's own.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable

import msgspec

from orchestrator.errors import HeadgateError
from orchestrator.runs import Principal

HEADER = "X-Headgate-Internal"
SKEW_S = 30.0
"""How far the clocks of two machines may be apart, plus how long a request may be on its way."""

_SHAPE = re.compile(r"([A-Za-z0-9_-]{1,4096})\.([0-9a-f]{64})")


class SignatureRefused(HeadgateError):
    """This address is for Headgate's own gateways. The request is not signed, or not with the secret that is configured here."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_signature"


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a gateway says of a request. `only_run`: the caller may see this run and no other one.

    `body`: the SHA-256 of a request's body, in hex; nothing for one without a body.
    """

    principal: Principal
    request_id: str
    signed_ms: int
    only_run: str | None = None
    body: str = ""

    def cover(self, body: bytes) -> bool:
        """Whether the request was signed with this body."""
        return hmac.compare_digest(self.body, _digest(body))


class Signer:
    """Both ends of the header. `clock` gives seconds since the epoch."""

    def __init__(self, secret: str, clock: Callable[[], float]) -> None:
        self._secret = secret.encode()
        self._clock = clock

    def sign(
        self,
        method: str,
        target: str,
        principal: Principal,
        request_id: str,
        only_run: str | None = None,
        body: bytes = b"",
    ) -> str:
        claims = Claims(principal, request_id, int(self._clock() * 1000), only_run, _digest(body))
        said = urlsafe_b64encode(msgspec.json.encode(claims)).rstrip(b"=").decode()
        return f"{said}.{self._mac(method, target, said)}"

    def verify(self, method: str, target: str, text: str | None) -> Claims:
        """Raises SignatureRefused."""
        shape = _SHAPE.fullmatch(text or "")
        if shape is None or not hmac.compare_digest(self._mac(method, target, shape[1]), shape[2]):
            raise SignatureRefused
        try:  # without a secret, anything can be signed
            claims = msgspec.json.decode(urlsafe_b64decode(shape[1] + "=" * (-len(shape[1]) % 4)), type=Claims)
        except (ValueError, RecursionError):
            raise SignatureRefused from None
        if abs(int(self._clock() * 1000) - claims.signed_ms) > SKEW_S * 1000:
            raise SignatureRefused
        return claims

    def _mac(self, method: str, target: str, said: str) -> str:
        return hmac.digest(self._secret, f"{method}\n{target}\n{said}".encode("utf-8", "surrogateescape"), "sha256").hex()


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest() if body else ""
