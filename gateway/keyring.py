"""The key ring of a process, as its settings have it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from gateway.access.jwks import Jwks
from gateway.access.keys import ConfiguredKeys, KeyRing, Keys, Open
from gateway.access.stored import StoredKeys
from gateway.access.tokens import Claims, SharedSecret, SigningKeys, Tokens
from gateway.settings import Settings
from gateway.settings_auth import Auth, Jwt
from gateway.transports.drain import Drain
from orchestrator.engine import Engine

_TICKETS = "tickets"
_SECRET_BYTES = 32


@asynccontextmanager
async def key_ring(settings: Settings, engine: Engine, drain: Drain) -> AsyncIterator[KeyRing]:
    """Inside, keys that end are noticed, and take the open answers of `drain` with them."""
    auth = settings.auth
    if auth.mode == "off":
        yield Open()
        return
    async with AsyncExitStack() as stack:
        stored = StoredKeys(engine, drain, time.time, outage_s=auth.outage_s)
        await stack.enter_async_context(stored.watching())
        tokens = None if auth.jwt is None else await _tokens(auth.jwt, stack)
        yield Keys(ConfiguredKeys((key.key.get_secret_value(), key.principal()) for key in auth.keys), stored, tokens, time.time)


async def ticket_secret(auth: Auth, engine: Engine) -> bytes:
    """What signs stream tickets, alike on all replicas: the configured secret, or one that the first of them made."""
    if auth.ticket_secret is not None:
        return auth.ticket_secret.get_secret_value().encode()
    return await engine.shared_secret(_TICKETS, secrets.token_bytes(_SECRET_BYTES))


async def _tokens(config: Jwt, stack: AsyncExitStack) -> Tokens:
    keys: SigningKeys
    if config.secret is not None:
        keys = SharedSecret(config.secret.get_secret_value())
    else:
        assert config.jwks_url is not None
        session = await stack.enter_async_context(
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, headers={"Accept": "application/json"})
        )
        keys = await stack.enter_async_context(Jwks(config.jwks_url, session, config.algorithms, time.monotonic).refreshing())
    claims = Claims(
        issuer=config.issuer,
        audience=config.audience,
        algorithms=config.algorithms,
        tenant=config.tenant_claim,
        scopes=config.scopes_claim,
        leeway_s=config.leeway_s,
    )
    return Tokens(claims, keys)
