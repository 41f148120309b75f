"""The key ring, over a real engine whose database of keys tests can hold up, take away and count the calls of. No sockets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from multidict import CIMultiDict

from gateway.access import stored
from gateway.access.keys import ConfiguredKeys, Keys, Open
from gateway.access.stored import KeysUnavailable, StoredKeys
from gateway.errors import AccessEnded, Unauthorized
from gateway.transports.drain import Drain
from orchestrator.engine import Engine
from orchestrator.keys import ApiKey, StoredKey, mint
from orchestrator.runs import EVERYDAY, Principal, Scope
from orchestrator.store.database import StoreUnavailable
from orchestrator.store.memory import MemoryRuns
from orchestrator.store.memory_keys import MemoryKeys
from tests.orchestrator.engines import an_engine

OUTAGE_S = 100.0
ACME = Principal("acme", "somebody")
READ = frozenset({Scope.RUNS_READ})


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Database(MemoryKeys):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def _asked(self, call: str) -> None:
        self.calls.append(call)
        await self.open.wait()
        if self.away:
            raise StoreUnavailable

    async def find(self, prefix: str) -> Sequence[StoredKey]:
        await self._asked("find")
        return await super().find(prefix)

    async def get(self, key_ids: Sequence[str]) -> Sequence[StoredKey]:
        await self._asked("get")
        return await super().get(key_ids)

    async def touch(self, used_ms: Any) -> None:
        await self._asked("touch")
        await super().touch(used_ms)


class Stage:
    """A ring of keys `stored`, with the configured ones `alice` and `late`, and a way to make more."""

    def __init__(self, engine: Engine, database: Database, capacity: int = 100) -> None:
        self.engine = engine
        self.database = database
        self.clock = Clock()
        self.drain = Drain(spread=lambda _: 0.0, clock=self.clock)
        self.stored = StoredKeys(engine, self.drain, self.clock, outage_s=OUTAGE_S, capacity=capacity)
        late = Principal("acme", "late", expires_ms=int(self.clock.now * 1000) + 1000)
        configured = ConfiguredKeys([("key-of-alice", Principal("acme", "alice", READ)), ("key-of-late", late)])
        self.ring = Keys(configured, self.stored, None, self.clock)
        self._numbers = itertools.count(1)

    async def make(self, **facts: Any) -> tuple[str, ApiKey]:
        number = next(self._numbers)
        text, fingerprint = mint(lambda count: bytes([number]) * count)
        key = await self.engine.create_key(ACME, fingerprint, f"key {number}", **facts)
        self.database.calls.clear()
        return text, key

    async def who(self, *keys: str, header: str = "Authorization", scheme: str = "Bearer ") -> Principal:
        return await self.ring.principal(CIMultiDict((header, scheme + key) for key in keys))

    async def refuses(self, *keys: str, **how: str) -> bool:
        with pytest.raises(Unauthorized) as raised:
            await self.who(*keys, **how)
        return (type(raised.value), raised.value.message) == (Unauthorized, Unauthorized().message)

    @asynccontextmanager
    async def answer(self, bearer: Principal) -> AsyncIterator[asyncio.Task[None]]:
        """An open answer, which ends when its bearer's key does."""
        begun = asyncio.Event()

        async def answering() -> None:
            async with self.drain.until_closed(bearer):
                begun.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(answering())
        await begun.wait()
        yield task
        task.cancel()
        await asyncio.wait((task,))


@pytest.fixture
async def database() -> Database:
    return Database()


@pytest.fixture
async def stage(database: Database) -> AsyncIterator[Stage]:
    archive = MemoryRuns()
    archive.keys = database
    async with an_engine(archive=archive) as engine:
        yield Stage(engine, database)


# -- what is shown


async def test_configured_keys_are_answered_from_memory(stage: Stage) -> None:
    assert await stage.who("key-of-alice") == Principal("acme", "alice", READ)
    assert await stage.who("key-of-alice", header="X-API-Key", scheme="") == Principal("acme", "alice", READ)
    assert await stage.who("  key-of-alice ", scheme="bEARER ") == Principal("acme", "alice", READ)
    assert stage.database.calls == []


async def test_configured_keys_expire(stage: Stage) -> None:
    assert (await stage.who("key-of-late")).key_id == "late"
    stage.clock.now += 1
    assert await stage.refuses("key-of-late")


@pytest.mark.parametrize("key", [
    "", " ", "\0", "key-of-alic", "key-of-alice2", "KEY-OF-ALICE", "sk-hg-", "sk-hg-" + "A" * 42, "sk-hg-" + "A" * 44,
    "sk-hg-" + "A" * 42 + "=", "sk-hg-" + "A" * 42 + "+", "sk-HG-" + "A" * 43, "sk-hg-" + "A" * 43 + "\n", "ü" * 49, "\udcff",
    "x" * 1_000_000, "a.b.c", "..",
])  # fmt: skip
async def test_what_no_key_looks_like_never_reaches_the_database(stage: Stage, key: str) -> None:
    assert await stage.refuses(key)
    assert await stage.refuses(key, header="X-API-Key", scheme="")
    assert stage.database.calls == []


async def test_one_key_is_shown_in_one_place(stage: Stage) -> None:
    text, _ = await stage.make()
    for headers in (
        [],
        [("Authorization", f"Basic {text}")],
        [("Authorization", text)],
        [("Authorization", f"Bearer {text}"), ("Authorization", f"Bearer {text}")],
        [("Authorization", f"Bearer {text}"), ("X-API-Key", text)],
        [("X-API-Key", text), ("X-API-Key", text)],
    ):
        with pytest.raises(Unauthorized):
            await stage.ring.principal(CIMultiDict(headers))
    assert stage.database.calls == []


# -- looking up


async def test_a_stored_key_is_looked_up_once(stage: Stage) -> None:
    text, key = await stage.make(scopes=READ, expires_ms=int(stage.clock.now * 1000) + 60_000)
    expected = Principal("acme", key.id, READ, expires_ms=key.expires_ms)
    assert [await stage.who(text) for _ in range(1000)] == [expected] * 1000
    assert stage.database.calls == ["find"]


async def test_many_who_come_at_once_are_one_look_up(stage: Stage) -> None:
    text, key = await stage.make()
    stage.database.open.clear()
    asking = [asyncio.create_task(stage.who(text)) for _ in range(200)]
    await asyncio.sleep(0)
    asking[0].cancel()  # who leaves does not take the others' answer along
    await asyncio.sleep(0)
    stage.database.open.set()
    assert {principal.key_id for principal in await asyncio.gather(*asking[1:])} == {key.id}
    assert stage.database.calls == ["find"]


async def test_what_was_not_found_is_remembered_for_a_moment(stage: Stage) -> None:
    unknown = "sk-hg-" + "A" * 43
    for _ in range(100):
        assert await stage.refuses(unknown)
    assert stage.database.calls == ["find"]
    stage.clock.now += stored.UNKNOWN_S
    assert await stage.refuses(unknown)
    assert stage.database.calls == ["find", "find"]


async def test_a_key_with_the_beginning_of_another_is_another(stage: Stage) -> None:
    text, _ = await stage.make()
    assert await stage.refuses(text[:-1] + ("A" if text[-1] != "A" else "B"))
    assert stage.database.calls == ["find"]


async def test_what_is_remembered_is_bounded(stage: Stage, database: Database) -> None:
    small = Stage(stage.engine, database, capacity=10)
    made = [await small.make() for _ in range(30)]
    for text, _ in made:
        await small.who(text)
        assert await small.refuses(text[:-4] + "AAAA")
    assert len(small.stored._held) == len(small.stored._unknown) == 10
    database.calls.clear()
    for text, _ in made[20:]:
        await small.who(text)
    assert database.calls == []
    await small.who(made[0][0])
    assert database.calls == ["find"]


async def test_more_look_ups_than_are_good_are_told_to_come_back(stage: Stage) -> None:
    stage.database.open.clear()
    unknown = [f"sk-hg-{number:043}" for number in range(1000)]
    asking = [asyncio.create_task(stage.who(text)) for text in unknown]
    await asyncio.sleep(0.01)
    assert len(stage.database.calls) == 2, "the database has others to serve"
    stage.database.open.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unauthorized, KeysUnavailable}
    assert [type(outcome) for outcome in outcomes].count(Unauthorized) == 256


# -- endings


@pytest.mark.parametrize("end", ["revoke", "rotate", "delete", "expire"])
async def test_a_key_that_ends_takes_its_answers_with_it(stage: Stage, end: str) -> None:
    facts = {"expires_ms": int(stage.clock.now * 1000) + 3_600_000} if end == "expire" else {}
    text, key = await stage.make(**facts)
    other, _ = await stage.make()
    who, whose = await stage.who(text), await stage.who(other)
    async with stage.answer(who) as answer, stage.answer(whose) as untouched:
        match end:
            case "revoke":
                await stage.engine.revoke_key(ACME, key.id)
            case "rotate":
                await stage.engine.rotate_key(ACME, key.id, mint(lambda count: b"x" * count)[1])
            case "delete":
                del stage.database._keys[key.id]
            case "expire":
                stage.clock.now += 3600
        assert end == "expire" or await stage.who(text) == who, "nobody has heard of it yet"
        await stage.stored.watch_once()
        with pytest.raises(AccessEnded):
            await answer
        assert await stage.refuses(text)
        assert not untouched.done()
    assert await stage.who(other) == whose


async def test_answers_of_keys_that_are_forgotten_are_watched_all_the_same(stage: Stage) -> None:
    text, key = await stage.make()
    who = await stage.who(text)
    async with stage.answer(who) as answer:
        stage.clock.now += stored.IDLE_S + 1
        await stage.stored.watch_once()
        assert not stage.stored._held
        await stage.engine.revoke_key(ACME, key.id)
        await stage.stored.watch_once()
        with pytest.raises(AccessEnded):
            await answer


async def test_an_end_that_comes_nearer_is_heard_of(stage: Stage) -> None:
    text, key = await stage.make()
    async with stage.answer(await stage.who(text)) as answer:
        rotated = await stage.engine.rotate_key(ACME, key.id, mint(lambda count: b"x" * count)[1], 50)
        stage.clock.now = rotated.key.created_ms / 1000
        await stage.stored.watch_once()
        assert (await stage.who(text)).expires_ms == rotated.replaced.expires_ms
        assert not answer.done()
        with pytest.raises(AccessEnded):
            await asyncio.wait_for(asyncio.shield(answer), 5)
    stage.clock.now += 0.051  # a fraction of a millisecond is lost where seconds become milliseconds
    assert await stage.refuses(text)


async def test_configured_keys_are_not_asked_about(stage: Stage) -> None:
    async with stage.answer(await stage.who("key-of-alice")):
        await stage.stored.watch_once()
    assert stage.database.calls == []


async def test_it_watches_by_itself_and_at_once_when_told(stage: Stage) -> None:
    text, key = await stage.make()
    async with stage.stored.watching(every_s=3600), stage.answer(await stage.who(text)) as answer:
        await stage.engine.revoke_key(ACME, key.id)
        stage.ring.recheck()
        with pytest.raises(AccessEnded):
            await asyncio.wait_for(asyncio.shield(answer), 5)


async def test_a_mistake_of_ours_does_not_stop_it(stage: Stage) -> None:
    """Whatever went wrong once, revocations have to be heard of for as long as the server runs."""
    text, key = await stage.make()
    who = await stage.who(text)
    asked = asyncio.Event()

    async def broken(key_ids: Sequence[str]) -> Sequence[StoredKey]:
        asked.set()
        raise ZeroDivisionError

    stage.database.get = broken  # type: ignore[method-assign]
    async with stage.stored.watching(every_s=0.01), stage.answer(who) as answer:
        await asyncio.wait_for(asked.wait(), 5)
        del stage.database.get  # type: ignore[method-assign]
        await stage.engine.revoke_key(ACME, key.id)
        with pytest.raises(AccessEnded):
            await asyncio.wait_for(asyncio.shield(answer), 5)


async def test_uses_that_can_never_be_written_do_not_stop_it_either(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written down of keys' use stood outside the net: a mistake there, and nobody heard of revocations any more."""
    text, key = await stage.make()
    who = await stage.who(text)
    asked = asyncio.Event()

    async def broken(used_ms: Any) -> None:
        asked.set()
        raise ZeroDivisionError

    monkeypatch.setattr(stored, "TOUCH_S", 0.0)
    monkeypatch.setattr(stage.database, "touch", broken)
    async with stage.stored.watching(every_s=0.01), stage.answer(who) as answer:
        await asyncio.wait_for(asked.wait(), 5)
        monkeypatch.undo()
        await stage.engine.revoke_key(ACME, key.id)
        with pytest.raises(AccessEnded):
            await asyncio.wait_for(asyncio.shield(answer), 5)


# -- an outage


async def test_known_keys_go_on_and_others_wait_while_the_database_is_away(stage: Stage) -> None:
    known, _ = await stage.make()
    other, _ = await stage.make()
    await stage.who(known)
    stage.database.away = True
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await stage.stored.watch_once()
        stage.clock.now += OUTAGE_S / 4
        assert (await stage.who(known)).tenant == "acme"
        with pytest.raises(KeysUnavailable) as raised:
            await stage.who(other)
        assert (raised.value.status, raised.value.retry_after_s) == (503, 1)
    stage.clock.now += OUTAGE_S / 4 + 0.1
    with pytest.raises(KeysUnavailable):
        await stage.who(known)
    stage.database.away = False
    assert (await stage.who(known)).tenant == (await stage.who(other)).tenant == "acme"


async def test_rounds_that_succeed_keep_known_keys_good(stage: Stage) -> None:
    text, _ = await stage.make()
    await stage.who(text)
    for _ in range(10):
        stage.clock.now += OUTAGE_S / 2
        await stage.stored.watch_once()
        await stage.who(text)
    assert stage.database.calls.count("find") == 1


async def test_a_database_that_hangs_is_one_that_is_away(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "CALL_S", 0.01)
    text, _ = await stage.make()
    stage.database.open.clear()
    with pytest.raises(KeysUnavailable):
        await stage.who(text)
    stage.database.open.set()
    assert (await stage.who(text)).tenant == "acme"


# -- tickets


async def test_a_ticket_is_good_as_long_as_its_key(stage: Stage) -> None:
    text, key = await stage.make()
    who = await stage.who(text)
    await stage.ring.confirm(who)
    await stage.engine.revoke_key(ACME, key.id)
    await stage.stored.watch_once()
    with pytest.raises(Unauthorized):
        await stage.ring.confirm(who)


async def test_a_ticket_may_come_to_another_replica_than_its_key(stage: Stage) -> None:
    _, key = await stage.make()
    await stage.ring.confirm(Principal("acme", key.id))
    stage.database.away = True
    with pytest.raises(KeysUnavailable):
        await stage.ring.confirm(Principal("acme", key.id))
    stage.database.away = False
    await stage.engine.revoke_key(ACME, key.id)
    for gone in (key.id, "key_" + "f" * 24):
        with pytest.raises(Unauthorized):
            await stage.ring.confirm(Principal("acme", gone))


async def test_tickets_of_configured_keys(stage: Stage) -> None:
    await stage.ring.confirm(Principal("acme", "alice", READ))
    now_ms = int(stage.clock.now * 1000)
    gone = [
        Principal("other", "alice"),
        Principal("acme", "bob"),
        Principal("acme", "jwt:x"),
        Principal("acme", "alice", expires_ms=now_ms),
    ]
    for principal in gone:
        with pytest.raises(Unauthorized):
            await stage.ring.confirm(principal)
    stage.clock.now += 1
    with pytest.raises(Unauthorized):
        await stage.ring.confirm(Principal("acme", "late"))


async def test_without_keys_everybody_is_one_and_nobody_else() -> None:
    everybody = await Open().principal(CIMultiDict(Authorization="Bearer whatever"))
    assert (everybody.tenant, everybody.scopes) == ("default", frozenset(Scope))
    await Open().confirm(everybody)
    with pytest.raises(Unauthorized):
        await Open().confirm(Principal("acme", "alice", EVERYDAY))


# -- last use


async def test_the_last_use_is_written_seldom_and_in_one_call(stage: Stage) -> None:
    (one, _), (two, _), _ = [await stage.make() for _ in range(3)]
    for _ in range(50):
        await stage.who(one)
        await stage.who(two)
    used_ms = int(stage.clock.now * 1000)
    async with stage.stored.watching(every_s=3600):
        assert "touch" not in stage.database.calls
    assert stage.database.calls.count("touch") == 1
    uses = {key.name: key.last_used_ms for key in await stage.engine.list_keys(ACME)}
    assert uses == {"key 1": used_ms, "key 2": used_ms, "key 3": None}


async def test_a_use_that_cannot_be_written_is_written_later(stage: Stage) -> None:
    text, _ = await stage.make()
    await stage.who(text)
    stage.database.away = True
    await stage.stored._write()
    stage.database.away = False
    await stage.stored._write()
    await stage.stored._write()
    assert stage.database.calls.count("touch") == 2
    assert [each.last_used_ms for each in await stage.engine.list_keys(ACME)] == [int(stage.clock.now * 1000)]
