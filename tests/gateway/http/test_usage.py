"""What was used and what it cost, over HTTP, from runs of every outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.gateway.http.native import TASKS, assert_error, bearer, begin, settings
from tests.orchestrator.engines import until

USAGE = "/api/v1/usage"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def counted(server: Any, runs: int, query: str = "", key: str = "sk-a") -> Any:
    """The report, once so many runs are in it: the archive follows by itself."""
    async with asyncio.timeout(10):
        while True:
            report = (await server.ask("GET", USAGE + query, headers=bearer(key))).json
            if report["total"]["runs"] == runs:
                return report
            await asyncio.sleep(0.05)


async def test_runs_of_every_outcome_are_in_it_with_what_they_used(server: Any, engine: Any) -> None:
    completed = await begin(server, 'say "one"; usage 10 20', model="priced")
    failed = await begin(server, 'say "two"; cut', model="priced")
    cancelled = await begin(server, 'say "three"; hang', model="priced")
    for task in (completed, failed):
        await until(engine, task, "STREAM_END")
    await until(engine, cancelled, "LLM_PARTIAL")
    await server.ask("POST", f"{TASKS}/{cancelled}/cancel", headers=bearer())
    await until(engine, cancelled, "STREAM_END")
    tasks = [(await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json for task in (completed, failed, cancelled)]
    report = await counted(server, 3, "?group_by=key,model,day")
    [group] = report["groups"]
    prompts = sum(task["usage"]["prompt_tokens"] for task in tasks)
    answers = sum(task["usage"]["completion_tokens"] for task in tasks)
    assert answers >= 20 + 1 + 1
    assert group | {"day": ""} == {
        "key_id": "alice",
        "model": "priced",
        "day": "",
        "runs": 3,
        "prompt_tokens": prompts,
        "completion_tokens": answers,
        "total_tokens": prompts + answers,
        "cached_tokens": 0,
        "cost_usd": (prompts * 2500 + answers * 10_000) / 10**9,
        "cost_nano_usd": prompts * 2500 + answers * 10_000,
    }
    assert set(report) == {"from", "to", "as_of", "groups", "total"}
    assert group["day"] == report["to"] == report["as_of"][:10]
    assert report["from"] == report["to"][:8] + "01"
    assert tasks[0]["usage"]["cost_usd"] == (10 * 2500 + 20 * 10_000) / 10**9
    assert report["total"] == {name: group[name] for name in report["total"]}


async def test_another_tenants_usage_is_nobodys_business(server: Any, engine: Any) -> None:
    await until(engine, await begin(server, "say 3 words"), "STREAM_END")
    await counted(server, 1)
    report = (await server.ask("GET", USAGE, headers=bearer("sk-b"))).json
    assert (report["total"]["runs"], report["groups"], report["total"]["cost_usd"]) == (0, [], None)


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "from=2026-02-30",
        "group_by=tenant",
        "from=2026-02-01&to=2026-01-01",
        "from=2020-01-01&to=2026-01-01",
    ],
)
async def test_what_cannot_be_meant_is_refused(server: Any, query: str) -> None:
    assert_error(await server.ask("GET", f"{USAGE}?{query}", headers=bearer()), 400)
