"""`/api/v1/auth/keys`: the API keys of a tenant, for those of its people who may hand them out.

A key is made here, and its text leaves with the answer: the engine is told what is kept of it, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from gateway.access.keys import KeyRing
from gateway.access.rules import Access
from gateway.edge import PRINCIPAL
from gateway.routes.native import answer, asked
from gateway.routes.route import Route
from gateway.wire.key_models import Key, KeyBody, KeyIssued, KeyList, KeyRotated, RotateBody, issued, rotated, shown
from gateway.wire.operation import Operation, Reply
from orchestrator.engine import Engine
from orchestrator.errors import KeyNotFound
from orchestrator.keys import ID, mint
from orchestrator.limits.quota import Allowance

_MAX_BODY_BYTES = 64 * 1024
_PATH = {"id": "The key's id, `key_…`."}
_SECRET = {"Cache-Control": "no-store"}

_LIST = Operation("keys", (Reply(200, "The keys.", KeyList),), refusals=(503,))
_CREATE = Operation("keys", (Reply(201, "The key.", KeyIssued),), body=KeyBody, refusals=(503,))
_REVOKE = Operation("keys", (Reply(200, "It has ended.", Key),), path=_PATH, refusals=(503,))
_ROTATE = Operation(
    "keys", (Reply(201, "The new key.", KeyRotated),), body=RotateBody, body_required=False, path=_PATH, refusals=(409, 503)
)


class KeyRoutes:
    """`most` is what the configuration lets every key use. `clock` gives seconds since the epoch."""

    def __init__(
        self,
        engine: Engine,
        ring: KeyRing,
        most: Allowance,
        clock: Callable[[], float],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._engine = engine
        self._ring = ring
        self._most = most
        self._clock = clock
        self._random_bytes = random_bytes

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/api/v1/auth/keys", Access.ADMIN, self.list, _LIST),
            Route("POST", "/api/v1/auth/keys", Access.ADMIN, self.create, _CREATE),
            Route("DELETE", "/api/v1/auth/keys/{id:[^/]+}", Access.ADMIN, self.revoke, _REVOKE),
            Route("POST", "/api/v1/auth/keys/{id:[^/]+}/rotate", Access.ADMIN, self.rotate, _ROTATE),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List your tenant's keys, newest first."""
        keys = await self._engine.list_keys(request[PRINCIPAL])
        return answer(KeyList(keys=[shown(key, self._now_ms()) for key in keys]))

    async def create(self, request: web.Request) -> web.Response:
        """Make a key for your tenant.

        The answer is the only place where its text is ever shown.
        """
        wanted = await asked(request, KeyBody, max_bytes=_MAX_BODY_BYTES)
        text, fingerprint = mint(self._random_bytes)
        expires_ms = None if wanted.expires_in_s is None else int(self._now_ms()) + wanted.expires_in_s * 1000
        # Who hands out a tenant's keys is not who says what the server's keys may use.
        limits = None if wanted.limits is None else wanted.limits.allowance().within(self._most)
        key = await self._engine.create_key(
            request[PRINCIPAL], fingerprint, wanted.name, frozenset(wanted.scopes), expires_ms, limits
        )
        return answer(issued(key, text, self._now_ms()), status=201, headers=_SECRET)

    async def revoke(self, request: web.Request) -> web.Response:
        """End a key.

        At once here, and within five seconds at every other replica: requests with it are refused, and answers that are being
        given to it end. Ending it twice is ending it once. It stays in the list.
        """
        key = await self._engine.revoke_key(request[PRINCIPAL], _key_id(request))
        self._ring.recheck()
        return answer(shown(key, self._now_ms()))

    async def rotate(self, request: web.Request) -> web.Response:
        """Replace a key by a new one with the same name and scopes.

        The old one ends at once, or after `overlap_s`. A key that was made to expire gets a successor that lives as long. 409 if
        it has ended already.
        """
        named = _key_id(request)
        wanted = await asked(request, RotateBody, max_bytes=_MAX_BODY_BYTES, required=False)
        text, fingerprint = mint(self._random_bytes)
        done = await self._engine.rotate_key(request[PRINCIPAL], named, fingerprint, wanted.overlap_s * 1000)
        self._ring.recheck()
        return answer(rotated(done.key, text, done.replaced, self._now_ms()), status=201, headers=_SECRET)

    def _now_ms(self) -> float:
        return self._clock() * 1000


def _key_id(request: web.Request) -> str:
    named = request.match_info["id"]
    if not ID.fullmatch(named):
        raise KeyNotFound
    return named
