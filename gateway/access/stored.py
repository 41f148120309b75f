"""The API keys of the database, as a door knows them: those that are used are kept, and asked about until they end.

A key that is known costs no call. One that is not is looked up, once however many ask at the same time; what no key can look like
is not looked up at all, and what was looked up in vain is remembered for a moment. All of this is bounded.

Every `WATCH_S` the state of the keys that are known, and of those that answers are open for, is asked for: a key that was revoked
anywhere, or whose end has been brought forward, is refused from then on and its open answers end. That is in force within that
and a call, well below five seconds.

While the database is away nothing is let in that is not known, and nothing that is known is turned away: `KeysUnavailable` is a
503 and says nothing of the key. Known keys are good for `outage_s` then, in which nobody hears of a revocation.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Self

from gateway.errors import Unauthorized
from gateway.observe import logs
from gateway.transports.drain import Drain
from orchestrator.engine import Engine
from orchestrator.errors import HeadgateError, Unavailable
from orchestrator.keys import ID, SHAPE, ApiKey, StoredKey, prefix_of
from orchestrator.runs import Principal

log = logs.logger(__name__)

WATCH_S = 2.0
CALL_S = 2.0
TOUCH_S = 60.0
"""How often it is written down when keys were used last."""
IDLE_S = 300.0
"""A key that nobody used for so long is not watched any more."""
UNKNOWN_S = 5.0
"""How long it is remembered that there is no such key."""

_CAPACITY = 10_000
_SEARCHES = 256
_AT_ONCE = 2
"""Of these, so many have a connection to the database at a time: it has others to serve."""


class KeysUnavailable(Unavailable):
    """Keys cannot be checked at the moment. Try again shortly."""

    code = "keys_unavailable"


class _Held:
    """A key that is known. `found_s` and `used_s`: when it was looked up, and used last."""

    __slots__ = ("digest", "found_s", "key", "principal", "used_s", "written_s")

    def __init__(self, stored: StoredKey, now_s: float) -> None:
        self.digest = stored.digest
        self.found_s = self.used_s = now_s
        self.written_s = 0.0
        self.update(stored.key)

    def update(self, key: ApiKey) -> None:
        self.key = key
        self.principal = Principal(key.tenant, key.id, key.scopes, key.limits, key.ends_ms)


class StoredKeys:
    """`clock` gives seconds since the epoch."""

    def __init__(
        self, engine: Engine, drain: Drain, clock: Callable[[], float], *, outage_s: float, capacity: int = _CAPACITY
    ) -> None:
        self._engine = engine
        self._drain = drain
        self._clock = clock
        self._outage_s = outage_s
        self._capacity = capacity
        self._held: OrderedDict[bytes, _Held] = OrderedDict()
        self._unknown: OrderedDict[bytes, float] = OrderedDict()
        self._searches: dict[bytes, asyncio.Task[_Held | None]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._confirmed_s = 0.0
        self._written_s = clock()
        self._unwritten: dict[str, int] = {}
        self._away = False
        self._recheck = asyncio.Event()

    @asynccontextmanager
    async def watching(self, every_s: float = WATCH_S) -> AsyncIterator[Self]:
        """Keys end inside when they have ended elsewhere."""
        watch = asyncio.create_task(self._watch(every_s), name="keys")
        try:
            yield self
        finally:
            watch.cancel()
            await asyncio.wait((watch, *self._searches.values()))
            await self._write()

    async def principal(self, text: str, digest: bytes) -> Principal:
        """Raises Unauthorized, KeysUnavailable."""
        now_s = self._clock()
        held = self._held.get(digest[:8])
        if held is None or not hmac.compare_digest(held.digest, digest) or not self._fresh(held, now_s):
            held = await self._find(text, digest)
        else:
            self._held.move_to_end(digest[:8])
        held.used_s = now_s
        return held.principal

    async def confirm(self, key_id: str) -> None:
        """Raises Unauthorized if this key has ended, KeysUnavailable."""
        now_s = self._clock()
        for held in self._held.values():
            if held.key.id == key_id and self._fresh(held, now_s):
                if held.key.ended(now_s * 1000):
                    raise Unauthorized
                return
        try:
            async with asyncio.timeout(CALL_S):
                states = await self._engine.key_states([key_id])
        except (Unavailable, TimeoutError) as error:
            raise KeysUnavailable(retry_after_s=1) from error
        if not states or states[0].ended(now_s * 1000):
            raise Unauthorized

    def recheck(self) -> None:
        """Ask now, and not only when it is time: something has changed."""
        self._recheck.set()

    async def watch_once(self) -> None:
        """Ask how the keys are that matter, and act on it. Raises Unavailable."""
        now_s = self._clock()
        watched = {held.key.id for held in self._held.values()} | {each for each in self._drain.bearers() if ID.fullmatch(each)}
        states = {key.id: key for key in await self._states(watched)}
        ends = {key_id: states[key_id].ends_ms if key_id in states else 0 for key_id in watched}
        self._drain.expire({key_id: end_ms for key_id, end_ms in ends.items() if end_ms is not None})
        for place, held in list(self._held.items()):
            key = states.get(held.key.id)
            if key is not None and not key.ended(now_s * 1000) and held.used_s > now_s - IDLE_S:
                held.update(key)
            elif held.key.id in watched:  # otherwise it was looked up meanwhile
                self._drop(place)
        self._confirmed_s = now_s

    # -- looking up ------------------------------------------------------------------------------------------------------

    def _fresh(self, held: _Held, now_s: float) -> bool:
        """Whether it was confirmed as lately as has to be while the database is away."""
        return now_s - max(held.found_s, self._confirmed_s) <= self._outage_s

    async def _find(self, text: str, digest: bytes) -> _Held:
        if SHAPE.fullmatch(text) is None or self._unknown.get(digest, 0.0) > self._clock():
            raise Unauthorized
        search = self._searches.get(digest)
        if search is None:
            if len(self._searches) >= _SEARCHES:
                raise KeysUnavailable(retry_after_s=1)
            search = self._searches[digest] = asyncio.create_task(self._search(text, digest))
            search.add_done_callback(lambda done: self._searched(digest, done))
        held = await asyncio.shield(search)
        if held is None:
            raise Unauthorized
        return held

    def _searched(self, digest: bytes, search: asyncio.Task[_Held | None]) -> None:
        del self._searches[digest]
        if not search.cancelled():
            search.exception()  # those who wait are told; if they all left, nobody wants to know

    async def _search(self, text: str, digest: bytes) -> _Held | None:
        try:
            async with asyncio.timeout(CALL_S), self._turn:
                found = await self._engine.find_keys(prefix_of(text))
        except (Unavailable, TimeoutError) as error:
            raise KeysUnavailable(retry_after_s=1) from error
        now_s = self._clock()
        held = None
        for stored in found:
            if hmac.compare_digest(stored.digest, digest) and not stored.key.ended(now_s * 1000):
                held = _Held(stored, now_s)
        if held is None:
            self._unknown[digest] = now_s + UNKNOWN_S
            _bound(self._unknown, self._capacity)
        else:
            self._drop(digest[:8])
            self._held[digest[:8]] = held
            while len(self._held) > self._capacity:
                self._drop(next(iter(self._held)))
        return held

    def _drop(self, place: bytes) -> None:
        held = self._held.pop(place, None)
        if held is not None:
            self._note_use((held,))

    # -- watching --------------------------------------------------------------------------------------------------------

    async def _watch(self, every_s: float) -> None:
        while True:
            try:
                async with asyncio.timeout(every_s):
                    await self._recheck.wait()
            except TimeoutError:
                pass
            self._recheck.clear()
            try:
                await self.watch_once()
                self._told(away=False)
                if self._clock() - self._written_s >= TOUCH_S:
                    await self._write()
            except HeadgateError as error:
                self._told(away=True, code=error.code)
            except Exception:
                log.exception("keys_not_watched")  # and tried again: without this loop nobody would hear of a revocation

    async def _states(self, key_ids: Iterable[str]) -> Iterable[ApiKey]:
        asked = sorted(key_ids)
        if not asked:
            return ()
        try:
            async with asyncio.timeout(CALL_S):
                return await self._engine.key_states(asked)
        except TimeoutError as error:
            raise KeysUnavailable from error

    def _told(self, *, away: bool, code: str = "") -> None:
        """An outage is told once, and so is its end."""
        if away != self._away:
            self._away = away
            if away:
                log.warning("keys_unavailable", code=code)
            else:
                log.info("keys_available")

    # -- last use --------------------------------------------------------------------------------------------------------

    def _note_use(self, holds: Iterable[_Held]) -> None:
        for held in holds:
            if held.used_s > held.written_s:
                held.written_s = held.used_s
                self._unwritten[held.key.id] = int(held.used_s * 1000)

    async def _write(self) -> None:
        """Write down when keys were used last; what cannot be written now is tried again."""
        self._written_s = self._clock()
        self._note_use(self._held.values())
        if not self._unwritten:
            return
        uses, self._unwritten = self._unwritten, {}
        try:
            async with asyncio.timeout(CALL_S):
                await self._engine.touch_keys(uses)
        except (HeadgateError, TimeoutError):
            self._unwritten = dict(list((uses | self._unwritten).items())[-self._capacity :])


def _bound(remembered: OrderedDict[bytes, float], capacity: int) -> None:
    while len(remembered) > capacity:
        remembered.popitem(last=False)
