"""Questions by their meaning: vectors in PostgreSQL with pgvector, or in memory for tests and simulations.

A question is a digest and a vector; its words are nowhere. The nearest ones are found by comparing with all in their place, which
is exact: there are few in one place, and an index over all tenants' vectors would find other people's first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import msgspec

from orchestrator.errors import HeadgateError
from orchestrator.store.database import Connection, Database


class Asked(msgspec.Struct, frozen=True):
    """A question that was answered. `place`: what it can be compared with. A tenant's are counted by `model`."""

    tenant: str
    model: str
    place: str
    question: str
    run_id: str
    asked_ms: int
    until_ms: int


class Near(msgspec.Struct, frozen=True):
    """The run that answered a question, and how alike that is: 1 is the same."""

    run_id: str
    score: float
    until_ms: int


class Questions(Protocol):
    """Every method raises StoreUnavailable within a bound when the store is away."""

    async def near(self, tenant: str, place: str, meaning: Sequence[float], now_ms: int, limit: int) -> Sequence[Near]:
        """The most alike that are still to be given, the best first."""

    async def remember(self, asked: Asked, meaning: Sequence[float], max_entries: int) -> None:
        """Keep the question, in place of the same one; of the tenant's and model's, the newest `max_entries` stay."""

    async def forget(self, tenant: str, place: str, run_id: str) -> None:
        """The run answers no more."""


class VectorsMissing(HeadgateError):
    """PostgreSQL cannot keep vectors."""

    code = "vectors_missing"


class PostgresQuestions:
    """Use as a context manager. Entering raises VectorsMissing where the database says that it cannot; one that is away may."""

    def __init__(self, dsn: str, *, connections: int = 2, bound_s: float = 2.0) -> None:
        self._database = Database(dsn, connections=connections, bound_s=bound_s, schema=_create)
        self._queries = self._database.queries

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        if (why := await self._database.refusal()) is not None:
            await self._database.__aexit__()
            raise VectorsMissing(
                f"A semantic cache (models.*.cache.semantic) needs PostgreSQL with pgvector 0.7 or newer; ours refuses: {why}. "
                "Install the extension and let this role create it (`CREATE EXTENSION vector`), or take the semantic cache out."
            )
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._database.__aexit__(*failure)

    async def near(self, tenant: str, place: str, meaning: Sequence[float], now_ms: int, limit: int) -> Sequence[Near]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(self._queries["near_questions"], tenant, place, _vector(meaning), now_ms, limit)
        return [Near(row["run_id"], min(row["score"], 1.0), row["until_ms"]) for row in rows]

    async def remember(self, asked: Asked, meaning: Sequence[float], max_entries: int) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["remember_question"], *msgspec.structs.astuple(asked), _vector(meaning))
            await connection.execute(self._queries["drop_questions"], asked.asked_ms)
            await connection.execute(self._queries["trim_questions"], asked.tenant, asked.model, max_entries)

    async def forget(self, tenant: str, place: str, run_id: str) -> None:
        async with self._database.connection() as connection:
            await connection.execute(self._queries["forget_question"], tenant, place, run_id)


async def _create(connection: Connection, queries: Mapping[str, str]) -> Sequence[str]:
    async with connection.transaction():
        await connection.execute(queries["lock_schema"])
        await connection.execute(queries["create_questions"])
    return ()


def _vector(meaning: Sequence[float]) -> str:
    """As pgvector reads it."""
    return f"[{','.join(map(str, meaning))}]"


class MemoryQuestions:
    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, str], tuple[Asked, Sequence[float]]] = {}

    async def near(self, tenant: str, place: str, meaning: Sequence[float], now_ms: int, limit: int) -> Sequence[Near]:
        found = [
            Near(asked.run_id, min(_likeness(meaning, other), 1.0), asked.until_ms)
            for asked, other in self._kept.values()
            if (asked.tenant, asked.place) == (tenant, place) and asked.until_ms > now_ms
        ]
        return sorted(found, key=lambda near: -near.score)[:limit]

    async def remember(self, asked: Asked, meaning: Sequence[float], max_entries: int) -> None:
        self._kept[asked.tenant, asked.place, asked.question] = asked, meaning
        mine = [(each.asked_ms, key) for key, (each, _) in self._kept.items() if _counted(each) == _counted(asked)]
        old = {key for key, (each, _) in self._kept.items() if each.until_ms <= asked.asked_ms}
        for key in old.union(key for _, key in sorted(mine, reverse=True)[max_entries:]):
            del self._kept[key]

    async def forget(self, tenant: str, place: str, run_id: str) -> None:
        gone = [key for key, (each, _) in self._kept.items() if (each.tenant, each.place, each.run_id) == (tenant, place, run_id)]
        for key in gone:
            del self._kept[key]


def _counted(asked: Asked) -> tuple[str, str]:
    return asked.tenant, asked.model


def _likeness(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between them."""
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))
