"""Questions by their meaning, in both stores; and a PostgreSQL that cannot keep them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from orchestrator.store.database import StoreRefused, StoreUnavailable
from orchestrator.store.questions import Asked, MemoryQuestions, Near, PostgresQuestions, Questions, VectorsMissing

NOW = 1_700_000_000_000


@pytest.fixture
async def in_postgres(database: str) -> AsyncIterator[PostgresQuestions]:
    async with PostgresQuestions(database) as questions:
        yield questions


@pytest.fixture(params=["memory", pytest.param("postgres", marks=pytest.mark.local)])
def questions(request: pytest.FixtureRequest) -> Any:
    return MemoryQuestions() if request.param == "memory" else request.getfixturevalue("in_postgres")


def asked(question: str, run: int = 1, **changes: Any) -> Asked:
    facts: dict[str, Any] = {"tenant": "acme", "model": "m", "place": "p", "asked_ms": NOW, "until_ms": NOW + 1000}
    return Asked(question=question, run_id=f"task-{run:032x}", **{**facts, **changes})


def name(run: int) -> str:
    return f"task-{run:032x}"


async def near(questions: Questions, meaning: list[float], *, place: str = "p", tenant: str = "acme", **more: Any) -> list[Near]:
    limit, now_ms = more.get("limit", 10), more.get("now_ms", NOW)
    return list(await questions.near(tenant, place, meaning, now_ms, limit))


async def test_the_most_alike_come_first(questions: Questions) -> None:
    for run, meaning in ((1, [1.0, 0.0]), (2, [1.0, 1.0]), (3, [-1.0, 0.0]), (4, [2.0, 0.1])):
        await questions.remember(asked(f"q{run}", run), meaning, 100)
    found = await near(questions, [5.0, 0.0])
    assert [each.run_id for each in found] == [name(1), name(4), name(2), name(3)]
    assert [each.score for each in found] == pytest.approx([1.0, 0.99875, 0.70711, -1.0], abs=1e-3)
    assert all(each.score <= 1.0 for each in found)
    assert {each.until_ms for each in found} == {NOW + 1000}
    assert await near(questions, [5.0, 0.0], limit=2) == found[:2]


async def test_nothing_is_near_in_another_place_or_to_another_tenant(questions: Questions) -> None:
    await questions.remember(asked("q"), [1.0, 0.0], 100)
    assert await near(questions, [1.0, 0.0], place="elsewhere") == []
    assert await near(questions, [1.0, 0.0], tenant="other") == []


async def test_the_same_question_has_one_answer_the_latest(questions: Questions) -> None:
    await questions.remember(asked("q", 1), [1.0, 0.0], 100)
    await questions.remember(asked("q", 2, until_ms=NOW + 5000), [0.0, 1.0], 100)
    assert await near(questions, [0.0, 1.0]) == [Near(name(2), 1.0, NOW + 5000)]


async def test_what_is_too_old_is_not_near_and_goes_when_something_new_comes(questions: Questions) -> None:
    await questions.remember(asked("old"), [1.0, 0.0], 100)
    assert await near(questions, [1.0, 0.0], now_ms=NOW + 999) != []
    assert await near(questions, [1.0, 0.0], now_ms=NOW + 1000) == []
    later = asked("new", 2, asked_ms=NOW + 1000, until_ms=NOW + 2000, tenant="other")
    await questions.remember(later, [1.0, 0.0], 100)
    assert await near(questions, [1.0, 0.0], now_ms=NOW) == []


async def test_the_oldest_go_when_there_are_too_many_of_a_tenant_and_model(questions: Questions) -> None:
    for tenant, model in (("acme", "m"), ("acme", "n"), ("other", "m")):
        await questions.remember(asked("first", 9, tenant=tenant, model=model, place=f"{model}", asked_ms=NOW - 9), [1.0], 3)
    for run in range(1, 6):
        await questions.remember(asked(f"q{run}", run, asked_ms=NOW + run, place="m"), [1.0], 3)
    assert {each.run_id for each in await near(questions, [1.0], place="m")} == {name(3), name(4), name(5)}
    assert len(await near(questions, [1.0], place="n")) == len(await near(questions, [1.0], place="m", tenant="other")) == 1


async def test_a_run_that_answers_no_more_is_forgotten(questions: Questions) -> None:
    await questions.remember(asked("a", 1), [1.0], 100)
    await questions.remember(asked("b", 2), [1.0], 100)
    await questions.forget("other", "p", name(1))
    await questions.forget("acme", "elsewhere", name(1))
    assert len(await near(questions, [1.0])) == 2
    await questions.forget("acme", "p", name(1))
    assert [each.run_id for each in await near(questions, [1.0])] == [name(2)]


@pytest.mark.local
class TestPostgres:
    async def test_a_vector_of_another_length_is_refused(self, in_postgres: PostgresQuestions) -> None:
        """Which is why the length is a part of the place."""
        await in_postgres.remember(asked("q"), [1.0, 0.0], 100)
        with pytest.raises(StoreRefused):
            await near(in_postgres, [1.0])

    async def test_many_may_start_at_once_and_again(self, database: str) -> None:
        for _ in range(2):
            async with PostgresQuestions(database) as one, PostgresQuestions(database) as other:
                await one.remember(asked("q"), [1.0], 100)
                assert len(await near(other, [1.0])) == 1

    async def test_a_role_that_may_not_create_the_extension_is_told_so_at_the_start(self, database: str) -> None:
        """Until somebody who may has done so."""
        admin = await asyncpg.connect(database)
        role = f"reader_{time.monotonic_ns()}"
        await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT CREATE ON SCHEMA public TO {role}")
        try:
            parts = urlsplit(database)
            _, _, address = parts.netloc.rpartition("@")
            theirs = parts._replace(netloc=f"{role}:p@{address}").geturl()
            with pytest.raises(VectorsMissing, match=r'needs .* pgvector 0\.7 or newer; ours refuses: .* "vector"\. Install'):
                await PostgresQuestions(theirs).__aenter__()
            await admin.execute("CREATE EXTENSION vector")
            async with PostgresQuestions(theirs) as questions:
                await questions.remember(asked("q"), [1.0], 100)
                assert len(await near(questions, [1.0])) == 1
        finally:
            await admin.execute(f"DROP OWNED BY {role}")
            await admin.execute(f"DROP ROLE {role}")
            await admin.close()

    async def test_a_database_that_is_away_holds_up_no_start(self, wire: Any) -> None:
        await wire.cut()
        async with PostgresQuestions(wire.url, bound_s=0.3) as questions:
            with pytest.raises(StoreUnavailable):
                await near(questions, [1.0])
