"""What was used and what it cost, over HTTP, from runs of every outcome."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.runs import RunState
from tests.gateway.http.native import ALICE, TASKS, assert_error, bearer, begin, script, settings
from tests.gateway.http.test_chat_route import CHAT, ask, data, raw_ask, text
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


@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_client_that_left_has_used_is_in_it(server: Any, engine: Any, witness: Any, stream: bool) -> None:
    """Rule 18: it is paid for, whoever reads it or does not."""
    async with server.connection() as (_, writer):
        writer.write(raw_ask(ask('say "three little words"; hang', model="priced", stream=stream)))
        call = await witness.nth(0)
        await until(engine, call.key, "LLM_PARTIAL", ALICE, 3)
    async with asyncio.timeout(2):
        await call.closed.wait()
    used = (await counted(server, 1))["total"]
    details = await engine.details(ALICE, call.key)
    assert details.run.state is RunState.CANCELLED
    assert used["completion_tokens"] == details.usage.completion_tokens == 3
    assert used["cost_nano_usd"] == details.cost_nano > 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_chat_that_hits_the_wall_ends_with_length(server: Any, stream: bool) -> None:
    body = ask(
        "no limit; say 500 words",
        stream=stream,
        headgate_options={"budget_tokens": 60},
        **({"stream_options": {"include_usage": True}} if stream else {}),
    )
    answer = await server.ask("POST", CHAT, headers=bearer(), json=body)
    assert answer.status == 200
    if stream:
        *chunks, usage, done = data(answer.body)
        assert done == "[DONE]"
        assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "length"
        told, words = usage["usage"], text(answer.body).split()
    else:
        [choice] = answer.json["choices"]
        assert choice["finish_reason"] == "length"
        told, words = answer.json["usage"], choice["message"]["content"].split()
    assert told["completion_tokens"] == len(words) > 10
    assert told["total_tokens"] <= 60


async def test_a_task_that_hits_the_wall_is_completed_and_its_events_say_why(server: Any, engine: Any) -> None:
    task = await begin(server, "say 500 words", token_budget=100)
    events = await until(engine, task, "STREAM_END")
    [ending] = [event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED"]
    assert (ending["finish_reason"], ending["budget"]["code"]) == ("length", "run_budget_exceeded")
    thresholds = [(event.payload or {})["threshold_percent"] for event in events if event.type == "BUDGET_THRESHOLD"]
    assert thresholds == [80, 100]
    told = (await server.ask("GET", f"{TASKS}/{task}", headers=bearer())).json
    assert (told["status"], told["result"]) == ("COMPLETED", ending["result"])
    assert told["usage"]["total_tokens"] <= 100


@pytest.mark.parametrize("budget", [0, -1, 1.5, "many", True])
async def test_what_is_no_budget_is_refused(server: Any, budget: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask("say 1 word", headgate_options={"budget_tokens": budget}))
    assert (answer.status, answer.json["error"]["param"]) == (400, "headgate_options.budget_tokens")
    assert_error(await server.ask("POST", TASKS, headers=bearer(), json=script("say 1 word", token_budget=budget)), 422)


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
