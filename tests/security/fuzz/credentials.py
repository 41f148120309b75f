"""Parsers of what callers prove who they are with, and of the other headers that somebody may have chosen freely."""

from __future__ import annotations

import re
from collections.abc import Hashable

import jwt
from multidict import CIMultiDict

from gateway.access.forwarding import HOST
from gateway.access.idempotency import idempotency
from gateway.access.keys import ConfiguredKeys, Keys
from gateway.access.origins import OriginNotAllowed, Origins
from gateway.access.stored import StoredKeys
from gateway.access.tickets import Tickets
from gateway.access.tokens import Claims, SharedSecret, Tokens
from gateway.errors import Unauthorized
from orchestrator import trace
from orchestrator.errors import InvalidRequest
from orchestrator.runs import Principal
from orchestrator.signing import SignatureRefused, Signer
from tests.security.fuzz.bodies import ran
from tests.security.fuzz.target import Target

KEY = "sk-hg-0123456789abcdef"
ALICE = Principal("acme", "alice")
SECRET = "0123456789abcdef0123456789abcdef"


class _NoStoredKeys(StoredKeys):
    """A database without any, and without a loop to ask it in."""

    def __init__(self) -> None: ...

    async def principal(self, text: str, digest: bytes) -> Principal:
        raise Unauthorized


async def _ticket_secret() -> bytes:
    return b"secret"


_TOKENS = Tokens(Claims("https://issuer/", "headgate", ("HS256",), "tenant", None, 0.0), SharedSecret(SECRET))
_TOKEN = jwt.encode({"iss": "https://issuer/", "aud": "headgate", "sub": "a", "tenant": "acme", "exp": 1 << 40}, SECRET, "HS256")
_KEYS = Keys(ConfiguredKeys([(KEY, ALICE)]), _NoStoredKeys(), None, lambda: 1000.0)
_TICKETS = Tickets(_ticket_secret, lambda: 1000.0)
_SIGNER = Signer("secret", lambda: 1000.0)
_TICKET, _ = ran(_TICKETS.issue(ALICE, "task-1"))
_SIGNED = _SIGNER.sign("GET", "/", ALICE, "req-1")
_ORIGINS = Origins(["https://app.example.com"], trust_host=False)


def headers_of(data: bytes) -> CIMultiDict[str]:
    """As a server hands them on: names and values split at what ends them, bytes that are no text as surrogates."""
    lines = [line.partition(":") for line in re.split("[\r\n\t\0]", data.decode("utf-8", "surrogateescape"))]
    return CIMultiDict((name.strip(), value.strip(" ")) for name, _, value in lines if name.strip())


def api_key(data: bytes) -> Hashable:
    """Headers open the door if and only if they hold the one key once, in one of its two places; else there is one refusal."""
    headers = headers_of(data)
    try:
        assert ran(_KEYS.principal(headers)) == ALICE
    except Unauthorized as error:
        return error.message
    bearers, bare = headers.getall("Authorization", []), headers.getall("X-API-Key", [])
    assert len(bearers) + len(bare) == 1
    assert bare == [KEY] or bearers[0].split(" ", 1)[1].strip(" ") == KEY
    return True


def ticket(data: bytes) -> Hashable:
    """A ticket is the very one that was issued, or refused like every other; signed nonsense is refused too."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        assert ran(_TICKETS.honour(text)).run_id == "task-1"
    except Unauthorized:
        said, _, _ = text.partition(".")
        if not said.isascii():
            return False
        try:
            ran(_TICKETS.honour(f"{said}.{ran(_TICKETS._signature(said))}"))
        except Unauthorized:
            return "signed and refused"
        return "signed"
    assert text == _TICKET
    return True


def bearer_token(data: bytes) -> Hashable:
    """A token of the issuer's is the very one that was signed, or refused like every other; signed nonsense is refused too."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        assert ran(_TOKENS.principal(text)).key_id == "jwt:a"
    except Unauthorized:
        _, _, said = text.partition(".")
        try:
            ran(_TOKENS.principal(jwt.api_jws.encode(said.encode("utf-8", "surrogateescape"), SECRET, "HS256")))
        except Unauthorized:
            return "signed and refused"
        return "signed"
    assert text.replace("=", "") == _TOKEN
    return True


def internal_signature(data: bytes) -> Hashable:
    """A signed header is the very one that was signed, or refused like every other; signed nonsense is refused too."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        assert _SIGNER.verify("GET", "/", text).request_id == "req-1"
    except SignatureRefused:
        said, _, _ = text.partition(".")
        try:
            _SIGNER.verify("GET", "/", f"{said}.{_SIGNER._mac('GET', '/', said)}")
        except SignatureRefused:
            return "signed and refused"
        return "signed"
    assert text == _SIGNED
    return True


def free_headers(data: bytes) -> Hashable:
    """Headers that anybody may choose are understood, ignored, or refused with a 4xx; what of them goes on is on one line."""
    headers = headers_of(data)
    followed = trace.parse(headers.getall("traceparent", ()), headers.getall("tracestate", ()))
    for value in followed.headers().values() if followed else ():
        assert value.isascii()
        assert value.isprintable()
    try:
        key = idempotency(headers, ALICE, {"a": 1}, sdk_retries=True)
        assert key is None or key.key.isascii()
        said = None
    except InvalidRequest as error:
        said = error.param
    try:
        allowed = _ORIGINS.check(headers)
    except OriginNotAllowed:
        allowed = "refused"
    assert allowed in (None, "refused") or any(name in allowed.lower() for name in ("app.example.com", "localhost", "127.", "["))
    return (followed is None, said, allowed == "refused", HOST.fullmatch(headers.get("Host", "")) is None)


TARGETS = {
    "api key": Target(
        api_key,
        [
            f"Authorization: Bearer {KEY}".encode(),
            f"X-API-Key: {KEY}".encode(),
            b"authorization: Basic eDp5",
            b"Authorization:Bearer",
        ],
        [b"Authorization: ", b"X-API-Key: ", b"Bearer ", b"bearer  ", KEY.encode(), b"\n"],
    ),
    "ticket": Target(ticket, [_TICKET.encode(), b"a.b", b"e30." + b"A" * 43], [b"e30", b"bnVsbA", b"_", b"W10"]),
    "bearer token": Target(
        bearer_token,
        [_TOKEN.encode(), b'e30.{"exp": 1e400}', b'e30.{"iss": "https://issuer/", "aud": "headgate", "sub": "a", "exp": 9e9}'],
        [b".", b"=", b"e30", b'"tenant"', b'"acme"', b"[", b"{}", b"1e999", b"-1", b"null"],
    ),
    "internal signature": Target(
        internal_signature, [_SIGNED.encode(), b"e30." + b"0" * 64, b"a." + b"0" * 64], [b"e30", b"bnVsbA", b"W10"]
    ),
    "free headers": Target(
        free_headers,
        [
            b"traceparent: 00-"
            + b"1" * 32
            + b"-"
            + b"2" * 16
            + b"-01\ntracestate: a=b,c=d\nIdempotency-Key: k\nHost: localhost:8080",
            b"Origin: http://localhost:8080\nHost: localhost:8080\nx-stainless-retry-count: 1",
            b"Origin: https://app.example.com\nHost: x",
        ],
        [
            b"\ntraceparent: ",
            b"\ntracestate: ",
            b"\nIdempotency-Key: ",
            b"\nOrigin: ",
            b"\nHost: ",
            b"null",
            b"http://[::1",
            b"@",
            b"//",
        ],
    ),
}
