"""API keys that are kept in the database: how they look, and what is known of each. No I/O.

    sk-hg-<43 characters: 256 random bits in base64url>

A key's text is shown once, to whoever has it made. What is kept is its SHA-256, which tells nothing of it, and its first
characters, by which it is found and people recognise it. The text is made, and compared, at the doors, and goes no further.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable

import msgspec

from orchestrator.limits.quota import Allowance
from orchestrator.runs import EVERYDAY, Scope

SHAPE = re.compile(r"sk-hg-[A-Za-z0-9_-]{43}")
ID = re.compile(r"key_[0-9a-f]{24}")

_PREFIX_CHARS = len("sk-hg-") + 8


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """What may be told of a key. Times are milliseconds since the epoch."""

    id: str
    prefix: str
    name: str
    tenant: str
    created_ms: int
    scopes: frozenset[Scope] = EVERYDAY
    limits: Allowance | None = None
    expires_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None

    @property
    def ends_ms(self) -> int | None:
        """From when on it is not good any more. One that was revoked never is, however far the clocks are apart."""
        return self.expires_ms if self.revoked_ms is None else 0

    def ended(self, now_ms: float) -> bool:
        return self.ends_ms is not None and self.ends_ms <= now_ms


class StoredKey(msgspec.Struct, frozen=True):
    """A key with what its text is compared with."""

    key: ApiKey
    digest: bytes


class Fingerprint(msgspec.Struct, frozen=True):
    """What is kept of a key's text."""

    id: str
    prefix: str
    digest: bytes


class Rotated(msgspec.Struct, frozen=True):
    """The key that takes the place of another, and that other one."""

    key: ApiKey
    replaced: ApiKey


def mint(random_bytes: Callable[[int], bytes]) -> tuple[str, Fingerprint]:
    """A new key's text, and what is to be kept of it."""
    text = "sk-hg-" + urlsafe_b64encode(random_bytes(32)).rstrip(b"=").decode()
    return text, Fingerprint(f"key_{random_bytes(12).hex()}", prefix_of(text), digest_of(text))


def prefix_of(text: str) -> str:
    return text[:_PREFIX_CHARS]


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
