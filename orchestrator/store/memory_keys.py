"""API keys in memory, with the behaviour of `postgres_keys.py`, for tests and simulations. Everything is gone on exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from orchestrator.keys import ApiKey, StoredKey


class MemoryKeys:
    """`store.keys.KeyStore`."""

    def __init__(self) -> None:
        self._keys: dict[str, StoredKey] = {}
        self._secrets: dict[str, bytes] = {}

    async def add(self, key: StoredKey) -> None:
        self._keys.setdefault(key.key.id, key)

    async def get(self, key_ids: Sequence[str]) -> Sequence[StoredKey]:
        return [found for key_id in key_ids if (found := self._keys.get(key_id))]

    async def find(self, prefix: str) -> Sequence[StoredKey]:
        return [stored for stored in self._keys.values() if stored.key.prefix == prefix]

    async def list(self, tenant: str | None) -> Sequence[ApiKey]:
        keys = [stored.key for stored in self._keys.values() if tenant in (None, stored.key.tenant)]
        return sorted(keys, key=lambda key: (key.created_ms, key.id), reverse=True)

    async def revoke(self, key_id: str, at_ms: int) -> None:
        if (stored := self._keys.get(key_id)) and stored.key.revoked_ms is None:
            self._change(key_id, revoked_ms=at_ms)

    async def replace(self, key_id: str, by: StoredKey, *, now_ms: int, ends_ms: int) -> bool:
        stored = self._keys.get(key_id)
        if stored is None or stored.key.ended(now_ms):
            return False
        expires_ms = ends_ms if stored.key.expires_ms is None else min(ends_ms, stored.key.expires_ms)
        self._change(key_id, expires_ms=expires_ms, revoked_ms=now_ms if ends_ms <= now_ms else None)
        await self.add(by)
        return True

    async def touch(self, used_ms: Mapping[str, int]) -> None:
        for key_id, at_ms in used_ms.items():
            if stored := self._keys.get(key_id):
                self._change(key_id, last_used_ms=max(at_ms, stored.key.last_used_ms or at_ms))

    async def secret(self, name: str, proposed: bytes) -> bytes:
        return self._secrets.setdefault(name, proposed)

    def _change(self, key_id: str, **facts: Any) -> None:
        stored = self._keys[key_id]
        self._keys[key_id] = StoredKey(msgspec.structs.replace(stored.key, **facts), stored.digest)
