"""What becomes of stored API keys: they are made, listed, ended and replaced, and found by whoever was shown one.

A key that has ended stays listed and never becomes good again. Another tenant's key is `KeyNotFound`, like one that never was.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from orchestrator.clock import Clock
from orchestrator.errors import KeyEnded, KeyNotFound
from orchestrator.keys import ID, ApiKey, Fingerprint, Rotated, StoredKey
from orchestrator.limits.quota import Allowance
from orchestrator.runs import EVERYDAY, Scope
from orchestrator.store.keys import KeyStore


class Issuing:
    """The keys of a store. Methods raise StoreUnavailable. A tenant of `None` is whichever."""

    def __init__(self, store: KeyStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(
        self,
        tenant: str,
        fingerprint: Fingerprint,
        name: str,
        *,
        scopes: frozenset[Scope] = EVERYDAY,
        expires_ms: int | None = None,
        limits: Allowance | None = None,
    ) -> ApiKey:
        """Doing it twice is doing it once."""
        made = ApiKey(
            id=fingerprint.id,
            prefix=fingerprint.prefix,
            name=name,
            tenant=tenant,
            created_ms=self._now_ms(),
            scopes=scopes,
            limits=limits,
            expires_ms=expires_ms,
        )
        await self._store.add(StoredKey(made, fingerprint.digest))
        return await self.get(tenant, fingerprint.id)

    async def get(self, tenant: str | None, key_id: str) -> ApiKey:
        """Raises KeyNotFound."""
        for found in await self._store.get([key_id]) if ID.fullmatch(key_id) else ():
            if tenant in (None, found.key.tenant):
                return found.key
        raise KeyNotFound

    async def list(self, tenant: str | None) -> Sequence[ApiKey]:
        """Newest first."""
        return await self._store.list(tenant)

    async def revoke(self, tenant: str | None, key_id: str) -> ApiKey:
        """Twice is once. Raises KeyNotFound."""
        key = await self.get(tenant, key_id)
        await self._store.revoke(key.id, self._now_ms())
        return await self.get(tenant, key_id)

    async def rotate(self, tenant: str | None, key_id: str, fingerprint: Fingerprint, overlap_ms: int) -> Rotated:
        """A key like this one, which ends after `overlap_ms`. One that was made to expire lives as long again.

        Raises KeyNotFound; KeyEnded if this one has ended already.
        """
        now_ms = self._now_ms()
        old = await self.get(tenant, key_id)
        new = msgspec.structs.replace(
            old,
            id=fingerprint.id,
            prefix=fingerprint.prefix,
            created_ms=now_ms,
            expires_ms=None if old.expires_ms is None else now_ms + old.expires_ms - old.created_ms,
            last_used_ms=None,
        )
        if not await self._store.replace(old.id, StoredKey(new, fingerprint.digest), now_ms=now_ms, ends_ms=now_ms + overlap_ms):
            raise KeyEnded
        return Rotated(new, await self.get(tenant, key_id))

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)
