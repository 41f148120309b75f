"""Where API keys are kept, and the secrets that all replicas share.

`postgres_keys.py` keeps them; `memory_keys.py` is for tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from orchestrator.keys import ApiKey, StoredKey


class KeyStore(Protocol):
    """Every method raises StoreUnavailable within a bound when the store is away."""

    async def add(self, key: StoredKey) -> None:
        """Keep a key, unless its id is known."""

    async def get(self, key_ids: Sequence[str]) -> Sequence[StoredKey]:
        """Those of them that there are, in any order."""

    async def find(self, prefix: str) -> Sequence[StoredKey]: ...

    async def list(self, tenant: str | None) -> Sequence[ApiKey]:
        """A tenant's keys, or everybody's, newest first."""

    async def revoke(self, key_id: str, at_ms: int) -> None:
        """Only the first time counts."""

    async def replace(self, key_id: str, by: StoredKey, *, now_ms: int, ends_ms: int) -> bool:
        """Keep another key and let this one end, not later than it would have, or revoke it if that is now.

        False, and nothing done, if it has ended.
        """

    async def touch(self, used_ms: Mapping[str, int]) -> None:
        """When keys were used last. An earlier time than is known has no effect."""

    async def secret(self, name: str, proposed: bytes) -> bytes:
        """The secret of this name: the first one that anybody proposed."""
