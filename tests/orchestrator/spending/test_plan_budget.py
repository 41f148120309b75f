"""A budget that several agents of a plan share: whoever meets the wall, the run completes with what its answer has."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.engine import Submission
from orchestrator.events import Event
from orchestrator.runs import RunState
from tests.orchestrator.engines import ACME, an_engine, until


def agent(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{script}", **more}}


TEAM = {"parallel": [agent(name, "rate 300/s; say 60 words") for name in ("one", "two", "three")]}
WRITER = agent("writer", "rate 300/s; say 100 words", answers=True)
PLANS = {
    "team": {"sequential": [TEAM, WRITER]},
    "stubborn": {"sequential": [{"retry": {"step": TEAM, "max_retries": 3, "delay_s": 0.01}}, WRITER]},
}


async def run(model: str, budget: int) -> tuple[list[Event], Any]:
    models = {name: {"plan": plan, "durability": "none", "price": {"input": 1, "output": 1}} for name, plan in PLANS.items()}
    async with an_engine(models=models) as engine:
        body = {"messages": [{"role": "user", "content": "Go"}]}
        begun = await engine.submit(ACME, Submission(model, body, budget_tokens=budget))
        async with asyncio.timeout(10):
            events = await until(engine, begun.id, "STREAM_END")
        return events, await engine.details(ACME, begun.id)


def total(events: list[Event]) -> int:
    return sum((event.payload or {})["usage"]["total_tokens"] for event in events if event.type == "LLM_OUTPUT")


@pytest.mark.parametrize("model", PLANS)
@pytest.mark.parametrize("budget", [30, 150, 220, 300])
async def test_whoever_meets_the_wall_the_run_completes_with_what_it_has(model: str, budget: int) -> None:
    events, details = await run(model, budget)
    [ending] = [event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED"]
    assert (ending["finish_reason"], ending["budget"]["code"]) == ("length", "run_budget_exceeded")
    assert details.run.state is RunState.COMPLETED
    assert total(events) == ending["usage"]["total_tokens"] <= budget
    thresholds = [(event.payload or {})["threshold_percent"] for event in events if event.type == "BUDGET_THRESHOLD"]
    assert thresholds.count(80) <= 1
    assert 100 in thresholds
    wrote = [event for event in events if event.type == "LLM_PARTIAL" and event.agent_id == "writer"]
    assert ending["result"] == "".join(event.message or "" for event in wrote)


@pytest.mark.parametrize("model", PLANS)
async def test_a_budget_that_suffices_changes_nothing(model: str) -> None:
    events, details = await run(model, 2000)
    [ending] = [event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED"]
    assert ending["finish_reason"] == "stop"
    assert "budget" not in ending
    assert len(ending["result"].split()) == 100
    assert details.usage.completion_tokens == 280
