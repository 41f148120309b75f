"""Stored API keys, in memory and in PostgreSQL: the same promises."""

from __future__ import annotations

import pytest

from orchestrator.clock import Clock
from orchestrator.errors import KeyEnded, KeyNotFound
from orchestrator.issuing import Issuing
from orchestrator.keys import ID, SHAPE, ApiKey, Fingerprint, Rotated, StoredKey, digest_of, mint, prefix_of
from orchestrator.limits.quota import Allowance, Budget
from orchestrator.runs import EVERYDAY, Scope, scopes_named
from orchestrator.store.keys import KeyStore
from orchestrator.store.memory_keys import MemoryKeys
from orchestrator.store.postgres import Postgres

NOW_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


class Stopped(Clock):
    now_ms = NOW_MS

    def time(self) -> float:
        return self.now_ms / 1000


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.local)])
def store(request: pytest.FixtureRequest) -> KeyStore:
    if request.param == "memory":
        return MemoryKeys()
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.keys


@pytest.fixture
def clock() -> Stopped:
    return Stopped()


@pytest.fixture
def issuing(store: KeyStore, clock: Stopped) -> Issuing:
    return Issuing(store, clock)


def a_fingerprint(number: int) -> Fingerprint:
    return mint(lambda count: bytes([number]) * count)[1]


def a_key(number: int, **facts: object) -> ApiKey:
    made = {"id": f"key_{number:02x}" + f"{number:02x}" * 11, "name": "ci", "tenant": "acme", "created_ms": NOW_MS} | facts
    return ApiKey(prefix=a_fingerprint(number).prefix, **made)  # type: ignore[arg-type]


def test_a_key_is_256_random_bits_and_what_is_kept_does_not_tell_it() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    text, kept = mint(random_bytes)
    assert text == "sk-hg-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert kept == Fingerprint("key_000102030405060708090a0b", "sk-hg-AAECAwQF", digest_of(text))
    assert asked == [32, 12]
    assert SHAPE.fullmatch(text)
    assert ID.fullmatch(kept.id)
    assert prefix_of(text) == kept.prefix


def test_scopes_of_another_version_are_none() -> None:
    assert scopes_named(["admin", "runs:rewind", ""]) == {Scope.ADMIN}


async def test_a_key_is_kept_as_it_was_made_and_found_by_its_beginning(store: KeyStore, issuing: Issuing) -> None:
    limits = Allowance(requests_per_minute=5, day=Budget(nano=1))
    scopes = frozenset({Scope.RUNS_READ, Scope.ADMIN})
    made = await issuing.create(
        "acme", a_fingerprint(1), "c\u0131 \U0001f511", scopes=scopes, expires_ms=NOW_MS + 1, limits=limits
    )
    assert made == a_key(1, name="c\u0131 \U0001f511", scopes=scopes, expires_ms=NOW_MS + 1, limits=limits)
    assert list(await store.find(made.prefix)) == [StoredKey(made, a_fingerprint(1).digest)]
    assert list(await store.find("sk-hg-nothing_")) == []


async def test_creating_twice_is_creating_once(store: KeyStore, issuing: Issuing) -> None:
    """A gateway that lost the answer asks again."""
    first = await issuing.create("acme", a_fingerprint(1), "ci")
    assert await issuing.create("acme", a_fingerprint(1), "ci") == first == a_key(1, scopes=EVERYDAY)
    assert list(await issuing.list(None)) == [first]


async def test_lists_are_a_tenants_own_newest_first(issuing: Issuing, clock: Stopped) -> None:
    for number, tenant in enumerate(("acme", "other", "acme"), 1):
        clock.now_ms = NOW_MS + number
        await issuing.create(tenant, a_fingerprint(number), "ci")
    assert [key.id[-1] for key in await issuing.list("acme")] == ["3", "1"]
    assert [key.id[-1] for key in await issuing.list("other")] == ["2"]
    assert [key.id[-1] for key in await issuing.list(None)] == ["3", "2", "1"]
    assert list(await issuing.list("nobody")) == []


async def test_revoking_twice_is_revoking_once(issuing: Issuing, clock: Stopped) -> None:
    await issuing.create("acme", a_fingerprint(1), "ci", expires_ms=NOW_MS + HOUR_MS)
    first = await issuing.revoke("acme", a_key(1).id)
    clock.now_ms += 5
    assert await issuing.revoke(None, a_key(1).id) == first == a_key(1, expires_ms=NOW_MS + HOUR_MS, revoked_ms=NOW_MS)
    assert first.ended(NOW_MS - HOUR_MS), "a door's clock may be behind"


@pytest.mark.parametrize(
    "key_id", [a_key(1).id, a_key(9).id, "", "\0", "key_", "sk-hg-AAAAAAAA", "\ud800", "key_" + "f" * 10_000]
)
async def test_another_tenants_key_is_none(issuing: Issuing, key_id: str) -> None:
    await issuing.create("acme", a_fingerprint(1), "ci")
    with pytest.raises(KeyNotFound):
        await issuing.revoke("other", key_id)
    with pytest.raises(KeyNotFound):
        await issuing.rotate("other", key_id, a_fingerprint(2), 0)
    assert list(await issuing.list(None)) == [a_key(1)]


@pytest.mark.parametrize(("expires_ms", "overlap_ms", "ends"), [
    (None, 0, {"revoked_ms": NOW_MS + HOUR_MS, "expires_ms": NOW_MS + HOUR_MS}),
    (None, HOUR_MS, {"expires_ms": NOW_MS + 2 * HOUR_MS}),
    (NOW_MS + 3 * HOUR_MS, HOUR_MS, {"expires_ms": NOW_MS + 2 * HOUR_MS}),
    (NOW_MS + 3 * HOUR_MS, 9 * HOUR_MS, {"expires_ms": NOW_MS + 3 * HOUR_MS}),
])  # fmt: skip
async def test_a_key_is_replaced_by_one_like_it(
    issuing: Issuing, store: KeyStore, clock: Stopped, expires_ms: int | None, overlap_ms: int, ends: dict[str, int]
) -> None:
    facts = {"scopes": frozenset({Scope.RUNS_READ}), "limits": Allowance(runs=1)}
    await issuing.create("acme", a_fingerprint(1), "ci", expires_ms=expires_ms, **facts)  # type: ignore[arg-type]
    await store.touch({a_key(1).id: NOW_MS + 7})
    clock.now_ms += HOUR_MS
    rotated = await issuing.rotate("acme", a_key(1).id, a_fingerprint(2), overlap_ms)
    lives_ms = None if expires_ms is None else expires_ms + HOUR_MS
    assert rotated == Rotated(
        key=a_key(2, created_ms=NOW_MS + HOUR_MS, expires_ms=lives_ms, **facts),
        replaced=a_key(1, last_used_ms=NOW_MS + 7, **facts, **ends),
    )
    assert list(await store.find(rotated.key.prefix)) == [StoredKey(rotated.key, a_fingerprint(2).digest)]


async def test_what_has_ended_cannot_be_replaced(issuing: Issuing, clock: Stopped) -> None:
    await issuing.create("acme", a_fingerprint(1), "revoked")
    await issuing.create("acme", a_fingerprint(2), "expired", expires_ms=NOW_MS + 1)
    await issuing.revoke("acme", a_key(1).id)
    clock.now_ms += 1
    for number in (1, 2):
        with pytest.raises(KeyEnded):
            await issuing.rotate("acme", a_key(number).id, a_fingerprint(3), HOUR_MS)
    assert len(await issuing.list(None)) == 2


async def test_the_last_use_moves_forward_only(issuing: Issuing, store: KeyStore) -> None:
    await issuing.create("acme", a_fingerprint(1), "ci")
    for at_ms in (NOW_MS + 5, NOW_MS + 3):
        await store.touch({a_key(1).id: at_ms, a_key(9).id: at_ms})
    await store.touch({})
    assert list(await issuing.list(None)) == [a_key(1, last_used_ms=NOW_MS + 5)]


async def test_the_first_secret_that_is_proposed_is_everybodys(store: KeyStore) -> None:
    assert [await store.secret("tickets", proposed) for proposed in (b"\0one", b"two")] == [b"\0one", b"\0one"]
    assert await store.secret("other", b"two") == b"two"
