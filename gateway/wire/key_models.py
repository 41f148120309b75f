"""What the routes about API keys take and answer. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict, StringConstraints

from gateway.wire.rest_models import Answer
from gateway.wire.task_bodies import NativeBody
from orchestrator.events import timestamp
from orchestrator.keys import ApiKey
from orchestrator.limits.config import LimitsOf
from orchestrator.runs import EVERYDAY, Scope

YEAR_S = 366 * 86_400

KeyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@ -]{1,64}$")]


class KeyBody(NativeBody):
    """A key to be made, for the caller's tenant."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ci", "scopes": ["runs:read"], "expires_in_s": 86_400}]})

    name: KeyName = Field(description="For people: what the key is for.")
    scopes: list[Annotated[Scope, Strict(False)]] = Field(
        default=sorted(EVERYDAY), description="What its bearer may do. `admin` is everything."
    )
    expires_in_s: int | None = Field(default=None, ge=1, le=10 * YEAR_S, description="None: it does not expire.")
    limits: LimitsOf | None = Field(
        default=None, description="Its own limits. None is higher than what the configuration has for every key when it is made."
    )


class RotateBody(NativeBody):
    """May be left out altogether."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_s": 3600}]})

    overlap_s: int = Field(default=0, ge=0, le=YEAR_S, description="How long the replaced key goes on being good.")


class Key(Answer):
    """A key, as it may be shown again and again. Its text is not in it."""

    id: str = Field(description="Stands for the key in logs.", examples=["key_0a1b2c3d4e5f60718293a4b5"])
    name: str
    tenant: str
    prefix: str = Field(description="How its text begins.", examples=["sk-hg-Zk3xQ9aB"])
    scopes: Sequence[Scope]
    limits: LimitsOf | None = Field(description="Its own, each in place of the one that the configuration has for every key.")
    status: Literal["active", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None = Field(description="To the minute, about.")


class KeyIssued(Key):
    key: str = Field(description="Its text. Shown now, and never again.")


class KeyRotated(KeyIssued):
    replaces: Key = Field(description="The key whose place it takes.")


class KeyList(Answer):
    keys: Sequence[Key] = Field(description="Newest first, those that have ended as well.")


def shown(key: ApiKey, now_ms: float) -> Key:
    return Key(
        id=key.id,
        name=key.name,
        tenant=key.tenant,
        prefix=key.prefix,
        scopes=sorted(key.scopes),
        limits=LimitsOf.of(key.limits),
        status="revoked" if key.revoked_ms is not None else "expired" if key.ended(now_ms) else "active",
        created_at=timestamp(key.created_ms),
        expires_at=_time(key.expires_ms),
        revoked_at=_time(key.revoked_ms),
        last_used_at=_time(key.last_used_ms),
    )


def issued(key: ApiKey, text: str, now_ms: float) -> KeyIssued:
    return KeyIssued(**shown(key, now_ms).model_dump(), key=text)


def rotated(key: ApiKey, text: str, replaced: ApiKey, now_ms: float) -> KeyRotated:
    return KeyRotated(**issued(key, text, now_ms).model_dump(), replaces=shown(replaced, now_ms))


def _time(ms: int | None) -> str | None:
    return None if ms is None else timestamp(ms)
