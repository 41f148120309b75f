"""Questions that mean the same: who is given whose answer, and what becomes of a request when nobody can tell."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from orchestrator.engine import CacheUse, Submission
from orchestrator.events import Event
from orchestrator.runs import Principal, Run
from orchestrator.store.database import StoreUnavailable
from orchestrator.store.questions import Asked, MemoryQuestions, Near
from orchestrator.upstreams.config import OpenAIConfig, ScriptedConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.scripted import ScriptedUpstream
from tests.orchestrator.cache.embeddings import EmbeddingsServer
from tests.orchestrator.cache.test_cache import Moving, payload, said
from tests.orchestrator.engines import ACME, OTHER
from tests.orchestrator.processes import Process, Shared

PARIS = "what is the capital city of the french republic these days"
SAME = "What is the capital city of the French Republic, these days?"
LIKE = "these days, what is the capital city of the glorious French republic?"
UNLIKE = "what is the tallest mountain in the alps, measured from the sea"


def models(*, agent: Any = None, **semantic: Any) -> dict[str, Any]:
    asks = {"upstream": "words", "embedding_model": "bag", "threshold": 0.9, "wait_s": 5.0, **semantic}
    plan = {"agent": {"upstream": "demo", **(agent or {})}}
    cache = {"exact": True, "any_temperature": True, "ttl_s": 600, "semantic": asks}
    return {"m": {"plan": plan, "durability": "none", "cache": cache}, "n": {"plan": plan, "durability": "none", "cache": cache}}


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingsServer]:
    async with EmbeddingsServer().running() as server:
        yield server


@pytest.fixture
def clock() -> Moving:
    return Moving()


@pytest.fixture
async def shared(server: EmbeddingsServer, clock: Moving) -> AsyncIterator[Shared]:
    async with upstream_session() as session:
        shared = Shared(clock=clock)
        config = OpenAIConfig(kind="openai", base_url=server.base_url, api_key="sk-canary")
        shared.upstreams["words"] = OpenAIUpstream("words", config, session)
        shared.questions = MemoryQuestions()
        yield shared


@pytest.fixture
async def here(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process(models()) as process:
        yield process


def ask(question: str, does: str = 'say "Paris"', *, use: CacheUse = "use", before: Any = (), **body: Any) -> Submission:
    """A question in a comment of the script that answers it."""
    model = body.pop("model", "m")
    messages = [*before, {"role": "user", "content": f"/script {does} # {question}"}]
    return Submission(model, {"messages": messages, **body}, cache=use)


async def answered(process: Process, submission: Submission, principal: Principal = ACME) -> tuple[Run, list[Event]]:
    """The run and its events; what there was to learn from it has been learnt."""
    run = await process.engine.submit(principal, submission)
    events = await process.events(run.id, principal)
    lessons = [task for task in asyncio.all_tasks() if task.get_name().startswith("lesson")]
    if lessons:
        await asyncio.wait(lessons)
    return run, events


def origin(run: Run) -> str | None:
    return None if run.cached is None else run.cached.run_id


async def test_a_question_that_means_the_same_is_given_the_answer(
    shared: Shared, here: Process, server: EmbeddingsServer
) -> None:
    first, events = await answered(here, ask(PARIS))
    again, repeated = await answered(here, ask(LIKE))
    other, _ = await answered(here, ask(UNLIKE))
    assert (origin(first), origin(again), origin(other)) == (None, first.id, None)
    assert again.cached is not None
    assert again.cached.score == pytest.approx(0.97, abs=0.02)
    assert payload(repeated[0])["cache_score"] == again.cached.score
    assert said(repeated) == said(events)
    assert server.asked[0] == ("bag", f'/script say "Paris" # {PARIS}')
    assert len(shared.upstream.witness.calls) == 2
    assert [call for call in here.metrics.calls if call in ("miss", "exact", "semantic")] == ["miss", "semantic", "miss"]


async def test_asked_again_in_those_words_it_need_not_be_compared(here: Process, server: EmbeddingsServer) -> None:
    first, _ = await answered(here, ask(PARIS))
    second, _ = await answered(here, ask(LIKE))
    third, _ = await answered(here, ask(LIKE))
    assert third.cached == second.cached
    assert origin(third) == first.id
    assert len(server.asked) == 2


async def test_what_was_said_before_has_to_be_the_same(here: Process) -> None:
    """Long conversations that end in different questions are alike as a whole."""
    before = [{"role": "user", "content": "Hello " * 200}, {"role": "assistant", "content": "Hello " * 200}]
    first, _ = await answered(here, ask(PARIS, before=before))
    for other in ([], before[:1], [*before, {"role": "system", "content": "Be brief."}]):
        assert origin((await answered(here, ask(LIKE, before=other)))[0]) is None
    assert origin((await answered(here, ask(UNLIKE, before=before)))[0]) is None
    assert origin((await answered(here, ask(LIKE, before=before)))[0]) == first.id


@pytest.mark.parametrize("other", [{"model": "n"}, {"temperature": 0.5}, {"n": 2}, {"tools": []}])
async def test_so_has_everything_else(here: Process, other: Any) -> None:
    await answered(here, ask(PARIS))
    assert origin((await answered(here, ask(LIKE, **other)))[0]) is None


async def test_nobody_else_is_given_it(here: Process) -> None:
    await answered(here, ask(PARIS))
    theirs, _ = await answered(here, ask(LIKE), OTHER)
    assert origin(theirs) is None
    assert origin((await answered(here, ask(SAME), OTHER))[0]) == theirs.id


async def test_a_changed_plan_is_another_matter(shared: Shared, here: Process) -> None:
    await answered(here, ask(PARIS))
    async with shared.process(models(agent={"system": "Be brief."})) as there:
        assert origin((await answered(there, ask(LIKE)))[0]) is None


async def test_how_alike_they_have_to_be(shared: Shared) -> None:
    for threshold, expected in ((0.999, False), (0.9, True)):
        async with shared.process(models(threshold=threshold)) as here:
            await answered(here, ask(PARIS))
            assert (origin((await answered(here, ask(LIKE, use="use")))[0]) is not None) is expected
            shared.questions = MemoryQuestions()


@pytest.mark.parametrize("does", ["status 500", 'say "Par"; cut', 'say "Paris"; finish length', "call f {}"])
async def test_what_was_not_answered_well_is_not_remembered(here: Process, does: str) -> None:
    for question in (PARIS, LIKE):
        assert origin((await answered(here, ask(question, does)))[0]) is None


async def test_a_recording_that_is_gone_is_forgotten_and_the_next_best_is_given(shared: Shared, here: Process) -> None:
    first, _ = await answered(here, ask(PARIS))
    second, _ = await answered(here, ask(UNLIKE.replace("tallest", "highest")))
    del shared.store.records[first.id]
    third, _ = await answered(here, ask(LIKE))
    assert (origin(second), origin(third)) == (None, None)
    assert origin((await answered(here, ask(SAME)))[0]) == third.id


async def test_it_is_given_for_as_long_as_the_model_says(shared: Shared, clock: Moving) -> None:
    """Also in words that were asked shortly before its time was up."""
    async with shared.process(models(ttl_s=60)) as here:
        first, _ = await answered(here, ask(PARIS))
        clock.ahead_s = 59.0
        for _ in range(2):
            assert origin((await answered(here, ask(LIKE)))[0]) == first.id
        clock.ahead_s = 62.0
        assert origin((await answered(here, ask(LIKE)))[0]) is None


async def test_the_oldest_question_goes_when_there_are_too_many(shared: Shared, clock: Moving) -> None:
    async with shared.process(models(max_entries=1)) as here:
        await answered(here, ask(PARIS))
        clock.ahead_s = 1.0
        await answered(here, ask(UNLIKE))
        assert origin((await answered(here, ask(LIKE)))[0]) is None


async def test_a_new_answer_takes_the_place_of_the_old_one(here: Process) -> None:
    first, _ = await answered(here, ask(PARIS))
    second, _ = await answered(here, ask(PARIS, use="renew"))
    assert origin(second) is None
    assert origin((await answered(here, ask(LIKE)))[0]) == second.id != first.id


async def test_a_request_that_wants_nothing_to_do_with_it(here: Process, server: EmbeddingsServer) -> None:
    await answered(here, ask(PARIS, use="avoid"))
    assert not server.asked
    await answered(here, ask(LIKE))
    assert origin((await answered(here, ask(SAME, use="avoid")))[0]) is None


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "text", "text": PARIS}, {"type": "image_url", "image_url": {"url": "data:,"}}]},
        {"role": "user", "content": "  "},
        {"role": "user", "content": "x" * 20_000},
        {"role": "tool", "content": PARIS, "tool_call_id": "c"},
    ],
)
async def test_what_is_no_question_in_words_is_not_compared(shared: Shared, server: EmbeddingsServer, message: Any) -> None:
    shared.upstreams["demo"] = ScriptedUpstream("demo", ScriptedConfig(kind="scripted", script='say "Yes"'))
    async with shared.process(models()) as here:
        await answered(here, Submission("m", {"messages": [{"role": "user", "content": "Hello"}, message]}))
    assert not server.asked


class TestWhenNobodyCanTell:
    async def unanswered(self, here: Process, why: str) -> None:
        run, events = await answered(here, ask(LIKE))
        assert (origin(run), events[-2].type) == (None, "WORKFLOW_COMPLETED")
        assert why in here.metrics.calls

    async def test_a_slow_upstream(self, shared: Shared, server: EmbeddingsServer) -> None:
        async with shared.process(models(wait_s=0.05)) as here:
            server.stuck = asyncio.Event()
            await self.unanswered(here, "slow")

    @pytest.mark.parametrize(("status", "body"), [(500, {}), (401, {}), (200, {}), (200, {"data": []}), (200, {"data": "x"}),
                                                  (200, {"data": [{"embedding": [0.0, 0.0]}]})])  # fmt: skip
    async def test_an_upstream_that_does_not_answer_well(
        self, here: Process, server: EmbeddingsServer, status: int, body: Any
    ) -> None:
        server.status, server.body = status, body
        await self.unanswered(here, "upstream")

    async def test_a_store_that_is_away(self, shared: Shared) -> None:
        shared.questions = Away()
        async with shared.process(models()) as here:
            await self.unanswered(here, "store")

    async def test_a_store_that_goes_away_before_there_is_something_to_remember(self, shared: Shared) -> None:
        shared.questions = Forgetful()
        async with shared.process(models()) as here:
            await self.unanswered(here, "store")


class Away(MemoryQuestions):
    async def near(self, tenant: str, place: str, meaning: Any, now_ms: int, limit: int) -> list[Near]:
        raise StoreUnavailable


class Forgetful(MemoryQuestions):
    async def remember(self, asked: Asked, meaning: Any, max_entries: int) -> None:
        raise StoreUnavailable


class Immeasurable(MemoryQuestions):
    """As PostgreSQL answers where a vector's numbers are all too small for half floats."""

    async def near(self, tenant: str, place: str, meaning: Sequence[float], now_ms: int, limit: int) -> Sequence[Near]:
        found = await super().near(tenant, place, meaning, now_ms, limit)
        return [msgspec.structs.replace(each, score=math.nan) for each in found]


async def test_a_likeness_that_is_no_number_is_none(shared: Shared) -> None:
    """It was not below the threshold, and so anything was given any answer."""
    shared.questions = Immeasurable()
    async with shared.process(models()) as process:
        await answered(process, ask(PARIS))
        run, _ = await answered(process, ask(UNLIKE))
        assert run.cached is None
