"""Tokens of an issuer: what is believed of them, and what is not. With the issuer's keys at hand, and over a real address."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt import PyJWK
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from gateway.access import jwks
from gateway.access.jwks import Jwks, named
from gateway.access.stored import KeysUnavailable
from gateway.access.tokens import Claims, SharedSecret, Tokens
from gateway.errors import Unauthorized
from gateway.transports.http_server import listening
from orchestrator.runs import EVERYDAY, Principal, Scope

SECRET = "0123456789abcdef0123456789abcdef"
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
EC = ec.generate_private_key(ec.SECP256R1())
EDWARDS = ed25519.Ed25519PrivateKey.generate()
PUBLIC = ("RS256", "PS256", "ES256", "EdDSA")


def claims(*algorithms: str, scopes: str | None = None) -> Claims:
    return Claims("https://issuer/", "headgate", algorithms, "tenant", scopes, leeway_s=5.0)


def said(**changes: Any) -> dict[str, Any]:
    whole = {"iss": "https://issuer/", "aud": "headgate", "sub": "alice", "tenant": "acme", "exp": int(time.time()) + 60}
    return {name: value for name, value in (whole | changes).items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        return jwt.encode(said(**changes), key, algorithm, headers=None if kid is None else {"kid": kid})


def jwk(key: Any, kid: str | None = None, **more: Any) -> dict[str, Any]:
    kind: Any = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    algorithm = next((kind[each] for each in kind if isinstance(key, each)), OKPAlgorithm)
    return algorithm.to_jwk(key.public_key(), as_dict=True) | ({} if kid is None else {"kid": kid}) | more


def a_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Known:
    """The keys of a set that was fetched."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self._named = named(a_set(*keys), PUBLIC)

    async def key(self, kid: str | None, algorithm: str) -> PyJWK | None:
        return self._named.get((kid, algorithm))


def shared(scopes: str | None = None) -> Tokens:
    return Tokens(claims("HS256", scopes=scopes), SharedSecret(SECRET))


def public(*keys: dict[str, Any]) -> Tokens:
    return Tokens(claims(*PUBLIC), Known(*keys))


async def test_a_token_says_who_its_bearer_is_and_until_when() -> None:
    principal = await shared().principal(token(exp=2_000_000_000))
    assert principal == Principal("acme", "jwt:alice", EVERYDAY, expires_ms=2_000_000_005_000)


@pytest.mark.parametrize(("scope", "scopes"), [
    (None, frozenset()),
    ("", frozenset()),
    ("openid profile", frozenset()),
    ("openid runs:read  admin", {Scope.RUNS_READ, Scope.ADMIN}),
    (["runs:read", "runs:write", 7], {Scope.RUNS_READ, Scope.RUNS_WRITE}),
])  # fmt: skip
async def test_scopes_are_those_of_the_claim_where_one_is_configured(scope: Any, scopes: Any) -> None:
    assert (await shared("scope").principal(token(scope=scope))).scopes == scopes
    assert (await shared().principal(token(scope=scope))).scopes == EVERYDAY


@pytest.mark.parametrize("changes", [
    {"exp": None}, {"iss": None}, {"aud": None}, {"sub": None}, {"tenant": None},
    {"exp": 1}, {"exp": "soon"}, {"exp": []}, {"exp": 1e300},
    {"exp": float("inf")}, {"exp": float("nan")}, {"exp": True}, {"exp": {}},
    {"iss": "https://other/"}, {"aud": "other"}, {"aud": []}, {"aud": 7}, {"aud": ["other"]},
    {"sub": ""}, {"sub": "a" * 256}, {"sub": "a\nb"}, {"sub": "\ud800"}, {"sub": "{a}"}, {"sub": "a b"}, {"sub": "é"},
    {"tenant": ""}, {"tenant": "a b"}, {"tenant": "../x"}, {"tenant": 7}, {"tenant": ["acme"]}, {"tenant": "a" * 65},
    {"tenant": "acme\n"},
], ids=repr)  # fmt: skip
async def test_one_that_says_less_or_something_else_is_refused(changes: dict[str, Any]) -> None:
    body = {**said(), **changes}
    payload = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
    forged = jwt.api_jws.encode(payload, SECRET, "HS256")
    with pytest.raises(Unauthorized) as raised:
        await shared().principal(forged)
    assert type(raised.value) is Unauthorized


@pytest.mark.parametrize(("claim", "ahead_s"), [("exp", -10), ("nbf", 60)])
async def test_one_that_is_not_valid_now_is_refused(claim: str, ahead_s: int) -> None:
    with pytest.raises(Unauthorized):
        await shared().principal(token(**{claim: int(time.time()) + ahead_s}))


async def test_a_clock_that_is_a_little_off_is_forgiven() -> None:
    await shared().principal(token(exp=int(time.time()) - 2, nbf=int(time.time()) + 2, aud=["x", "headgate"]))


@pytest.mark.parametrize("algorithm", PUBLIC)
async def test_every_kind_of_public_key(algorithm: str) -> None:
    keys: Mapping[str, Any] = {"RS256": RSA, "PS256": RSA, "ES256": EC, "EdDSA": EDWARDS}
    tokens = public(jwk(RSA, "r"), jwk(EC, "e"), jwk(EDWARDS, "d"))
    kid = {"RS256": "r", "PS256": "r", "ES256": "e", "EdDSA": "d"}[algorithm]
    assert (await tokens.principal(token(keys[algorithm], algorithm, kid))).key_id == "jwt:alice"
    assert (await tokens.principal(token(keys[algorithm], algorithm))).key_id == "jwt:alice", "the only one of its kind"


async def test_a_token_without_a_name_of_a_key_is_ambiguous_where_there_are_two() -> None:
    with pytest.raises(Unauthorized):
        await public(jwk(RSA, "1"), jwk(OTHER_RSA, "2")).principal(token(RSA, "RS256"))


def unsigned(**header: Any) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in (header, said())]
    return ".".join([*parts, ""])


def public_pem(key: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return str(key.public_key().public_bytes(serialization.Encoding.PEM, form).decode())


def signed_by_hand(secret: bytes, **header: Any) -> str:
    """As an attacker would, who is stopped by no library."""
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(said()).encode()).rstrip(b"=")
    signature = hmac.digest(secret, head + b"." + body, hashlib.sha256)
    return (head + b"." + body + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.mark.parametrize("forged", [
    unsigned(alg="none"), unsigned(alg="None"), unsigned(alg=""), unsigned(), unsigned(alg=["RS256"]),
    unsigned(alg="RS256", kid="r"), unsigned(alg={"RS256": 1}), unsigned(alg="RS256", kid=["r"]),
    unsigned(alg="RS256", kid={"a": "b"}),
    unsigned(alg="RS256", kid="r", b64=False, crit=["b64"]),
    signed_by_hand(public_pem(RSA).encode(), alg="HS256", kid="r"),  # the public key taken for a secret
    signed_by_hand(public_pem(RSA).encode(), alg="RS256", kid="r"),
    signed_by_hand(b"", alg="HS256", kid="s"),
    signed_by_hand(b"published" * 8, alg="HS256", kid="s"),  # a secret among the public keys
    token(OTHER_RSA, "RS256", "r"),
    token(OTHER_RSA, "RS256", "gone"),
    jwt.encode(said(), RSA, "RS512", headers={"kid": "r"}),
    jwt.encode(said(), OTHER_RSA, "RS256", headers={"kid": "r", "jwk": jwk(OTHER_RSA, "r"), "jku": "http://127.0.0.1/"}),
    token(EC, "ES256", "r"),
])  # fmt: skip
async def test_forgeries_get_nowhere(forged: str) -> None:
    secret = {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(b"published" * 8).decode()}
    with pytest.raises(Unauthorized):
        await public(jwk(RSA, "r"), jwk(EC, "e"), secret).principal(forged)
    with pytest.raises(Unauthorized):
        await shared().principal(forged)


async def test_a_key_is_good_for_its_own_algorithm_and_purpose() -> None:
    for key in (jwk(RSA, "r", alg="PS256"), jwk(RSA, "r", use="enc")):
        with pytest.raises(Unauthorized):
            await public(key).principal(token(RSA, "RS256", "r"))


async def test_short_keys_prove_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        short = rsa.generate_private_key(65537, 1024)
    with pytest.raises(Unauthorized):
        await public(jwk(short, "r")).principal(token(short, "RS256", "r"))


def part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


ANY_JSON = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x"]), inner)
    ),
    max_leaves=8,
)


@given(
    st.tuples(*[st.text(st.characters(codec="ascii"), max_size=40)] * 3).map(".".join)
    | st.tuples(*[st.binary(max_size=60).map(part)] * 3).map(".".join)
    | ANY_JSON.map(lambda header: part(json.dumps(header).encode()) + ".e30.AA")
)
def test_whatever_it_is_it_is_refused(text: str) -> None:
    """Nothing that somebody sends for a token becomes another error than that."""
    for tokens in (shared(), public(jwk(RSA, "r"))):
        with pytest.raises(Unauthorized):
            asyncio.run(tokens.principal(text))


@pytest.mark.parametrize("header", ["[" * 5000, "{" * 100, '{"alg":' + "[" * 5000, "1" * 6000, '{"alg":"HS256","x":1e999}'])
async def test_headers_that_are_deep_or_odd_are_refused(header: str) -> None:
    forged = base64.urlsafe_b64encode(header.encode()).rstrip(b"=").decode() + ".e30.AA"
    with pytest.raises(Unauthorized):
        await shared().principal(forged)


# -- the issuer's address


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Issuer:
    """An address with keys. `status` is what it answers."""

    def __init__(self) -> None:
        self.body = a_set(jwk(RSA, "1"))
        self.status = 200
        self.asked = 0
        self.clock = Clock()
        self.open = asyncio.Event()
        self.open.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.open.wait()
        return web.Response(body=self.body, status=self.status, headers={"Location": "/other"} if self.status == 302 else {})

    @asynccontextmanager
    async def known(self) -> AsyncIterator[Tokens]:
        app = web.Application()
        app.router.add_get("/jwks", self.answer)
        async with (
            listening(app, host="127.0.0.1", port=0, new_request_id=lambda: "r") as url,
            aiohttp.ClientSession() as session,
            Jwks(f"{url}/jwks", session, ["RS256"], self.clock).refreshing() as keys,
        ):
            yield Tokens(claims("RS256"), keys)


async def test_keys_are_fetched_once_and_by_many_at_once() -> None:
    issuer = Issuer()
    async with issuer.known() as tokens:
        await asyncio.gather(*(tokens.principal(token(RSA, "RS256", "1")) for _ in range(50)))
        for _ in range(50):
            await tokens.principal(token(RSA, "RS256", "1"))
    assert issuer.asked == 1


async def test_an_issuer_may_change_its_keys_and_names_that_never_were_cost_it_little() -> None:
    issuer = Issuer()
    async with issuer.known() as tokens:
        await tokens.principal(token(RSA, "RS256", "1"))
        issuer.body = a_set(jwk(RSA, "1"), jwk(OTHER_RSA, "2"))
        issuer.clock.now += jwks.AGAIN_S
        await tokens.principal(token(OTHER_RSA, "RS256", "2"))
        assert issuer.asked == 2
        for number in range(50):
            with pytest.raises(Unauthorized):
                await tokens.principal(token(OTHER_RSA, "RS256", f"never-{number}"))
        assert issuer.asked == 2


@pytest.mark.parametrize("trouble", [
    {"status": 500}, {"status": 302}, {"status": 404}, {"body": b"<html>"}, {"body": b"[]"}, {"body": b'{"keys": 1}'},
    {"body": b'{"keys": [1]}'}, {"body": b" " * (300 * 1024)}, {"body": b'{"keys":' + b"[" * 100_000},
    {"body": b'{"keys": [{"kty":' + b"[" * 100_000},
])  # fmt: skip
async def test_an_issuer_that_answers_nothing_good_is_one_that_is_away(trouble: dict[str, Any]) -> None:
    issuer = Issuer()
    good = vars(issuer).copy()
    vars(issuer).update(trouble)
    async with issuer.known() as tokens:
        with pytest.raises(KeysUnavailable):
            await tokens.principal(token(RSA, "RS256", "1"))
        vars(issuer).update(good)
        issuer.clock.now += jwks.AGAIN_S
        assert (await tokens.principal(token(RSA, "RS256", "1"))).tenant == "acme"
        vars(issuer).update(trouble)
        issuer.clock.now += jwks.STALE_S
        assert (await tokens.principal(token(RSA, "RS256", "1"))).tenant == "acme", "its keys stay good for a while"
        with pytest.raises(KeysUnavailable):
            await tokens.principal(token(RSA, "RS256", "2"))
        issuer.clock.now += 1
        with pytest.raises(KeysUnavailable):
            await tokens.principal(token(RSA, "RS256", "1"))


async def test_an_issuer_that_hangs_is_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 0.05)
    issuer = Issuer()
    issuer.open.clear()
    async with issuer.known() as tokens:
        with pytest.raises(KeysUnavailable):
            await tokens.principal(token(RSA, "RS256", "1"))
        issuer.open.set()


async def test_odd_keys_in_a_set_do_no_harm() -> None:
    odd = [
        {},
        {"kty": "RSA"},
        {"kty": "RSA", "kid": "x", "n": "!", "e": "?"},
        {"kty": "EC", "crv": "P-9"},
        {"kty": 7},
        {"kid": ["1"]},
    ]
    keys = named(a_set(*odd, jwk(RSA, "1")), PUBLIC)
    assert set(keys) == {("1", "RS256"), ("1", "PS256"), (None, "RS256"), (None, "PS256")}
