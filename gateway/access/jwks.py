"""The public keys of an issuer, as its JWKS address tells them (RFC 7517).

Fetched in the background and kept; a key that is not known, of which there is one whenever an issuer has changed its own, is
asked for at once, but not more often than every `AGAIN_S`, whoever shows tokens with names of keys that never were. An issuer
that does not answer costs nothing for `STALE_S`: its keys stay good. After that, and before it has answered for the first time,
nobody can be told apart: `KeysUnavailable`.

Only signatures with public keys are proven with what is found there: a shared secret that is published is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import aiohttp
import jwt
import msgspec
from jwt import PyJWK

from gateway.access.stored import KeysUnavailable
from gateway.observe import logs

log = logs.logger(__name__)

REFRESH_S = 300.0
AGAIN_S = 10.0
STALE_S = 3600.0
FETCH_S = 5.0

_MAX_BYTES = 256 * 1024
_MAX_KEYS = 100

Named = Mapping[tuple[str | None, str], PyJWK]
"""Keys by their name and algorithm; under no name the one that is the only one of its algorithm."""


class _Set(msgspec.Struct):
    keys: list[dict[str, Any]]


class Jwks:
    """`tokens.SigningKeys`. `clock` is monotonic."""

    def __init__(self, url: str, session: aiohttp.ClientSession, algorithms: Sequence[str], clock: Callable[[], float]) -> None:
        self._url = url
        self._session = session
        self._algorithms = algorithms
        self._clock = clock
        self._named: Named = {}
        self._fetched_s: float | None = None
        self._tried_s: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[Self]:
        refresh = asyncio.create_task(self._refresh(), name="jwks")
        try:
            yield self
        finally:
            tasks = [task for task in (refresh, self._fetching) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def key(self, kid: str | None, algorithm: str) -> PyJWK | None:
        """Raises KeysUnavailable."""
        found = None if self._stale() else self._named.get((kid, algorithm))
        if found is None:
            await self._again()
            found = None if self._stale() else self._named.get((kid, algorithm))
            if found is None and self._fetched_s != self._tried_s:
                raise KeysUnavailable(retry_after_s=AGAIN_S)
        return found

    def _stale(self) -> bool:
        return self._fetched_s is None or self._clock() - self._fetched_s > STALE_S

    async def _refresh(self) -> None:
        while True:
            await self._again()
            await asyncio.sleep(REFRESH_S if self._fetched_s == self._tried_s else AGAIN_S)

    async def _again(self) -> None:
        """Fetch, unless that was tried a moment ago; one at a time, for everybody who waits."""
        if self._fetching is None:
            if self._tried_s is not None and self._clock() - self._tried_s < AGAIN_S:
                return
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._done)
        await asyncio.shield(self._fetching)

    def _done(self, _: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        now_s = self._clock()
        try:
            self._named = named(await self._body(), self._algorithms)
            self._fetched_s = now_s
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            log.warning("jwks_unavailable", error=type(error).__name__)
        except Exception:
            log.exception("jwks_unreadable")  # keys of a kind that nobody expected; those that are known stay
        self._tried_s = now_s

    async def _body(self) -> bytes:
        """Raises ClientError, TimeoutError, ValueError."""
        timeout = aiohttp.ClientTimeout(total=FETCH_S)
        body = bytearray()
        async with self._session.get(self._url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > _MAX_BYTES:
                    raise ValueError("too large for a set of keys")
        return bytes(body)


def named(body: bytes, algorithms: Sequence[str]) -> Named:
    """The keys of a set that are good for these algorithms. Raises ValueError for what is no set."""
    keys: dict[tuple[str | None, str], PyJWK] = {}
    for algorithm in algorithms:
        fitting = [
            (kid if isinstance(kid := each.get("kid"), str) else None, key)
            for each in msgspec.json.decode(body, type=_Set).keys[:_MAX_KEYS]
            if (key := _key(each, algorithm)) is not None
        ]
        keys |= {(kid, algorithm): key for kid, key in fitting if kid is not None}
        if len(fitting) == 1:
            keys[None, algorithm] = fitting[0][1]
    return keys


def _key(each: dict[str, Any], algorithm: str) -> PyJWK | None:
    if each.get("kty") == "oct" or each.get("use", "sig") != "sig" or each.get("alg", algorithm) != algorithm:
        return None
    try:
        return PyJWK(each, algorithm)
    except (jwt.PyJWTError, ValueError, TypeError, LookupError):
        return None  # one of another kind
