"""What plans cost beside the agents in them, as a viewer sees it; prints a report as JSON. The upstream is `bench.upstream`.

A parallel step of twenty agents: what it adds to the longest branch, and how long after a branch's last token the viewer
is told that it has completed. A plan of twenty steps in a row: the time per step, and what it leaves in Temporal's history.

The upstream's chunks carry the monotonic time at which they were written, so nothing depends on when the viewer came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import uvloop

from bench.tally import STAMP

AGENTS = 20
TEAM, ROW = "team", "row"


def models() -> dict[str, Any]:
    """Of the configuration: both plans, durable and not."""
    branches = [_agent(f"b{number}", f"mock-{10 + number}-10") for number in range(AGENTS)]
    last = _agent("last", "mock-1-0", answers=True)
    plans = {
        TEAM: {"sequential": [{"parallel": {"name": TEAM, "branches": branches}}, last]},
        ROW: {"sequential": [*(_agent(f"s{number}", "mock-1-0") for number in range(AGENTS - 1)), last]},
    }
    return {
        f"{durability}-{name}": {"plan": plan, "durability": "temporal" if durability == "durable" else "none"}
        for name, plan in plans.items()
        for durability in ("durable", "none")
    }


def _agent(name: str, model: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "mock", "model": model, "input": name, **more}}


class Seen:
    """One run of a plan: when its viewer was told what, and when the upstream wrote each agent's first and last token."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.written: dict[str, tuple[float, float]] = {}
        self.completed: dict[str, float] = {}
        self.ended = 0.0
        self.result = ""

    def add(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        payload = event.get("payload") or {}
        match event["type"]:
            case "LLM_PARTIAL" if found := STAMP.findall(event["message"].encode()):
                first, _ = self.written.get(event["agent_id"], (int(found[0]) / 1e9, 0.0))
                self.written[event["agent_id"]] = first, int(found[-1]) / 1e9
            case "PROGRESS" if payload.get("status") == "completed":
                self.completed[payload["step_name"]] = now
            case "WORKFLOW_COMPLETED" | "WORKFLOW_FAILED":
                self.ended, self.result = now, event["type"]

    @property
    def added_ms(self) -> float:
        """Of the time from the first token of any branch to the word that all have completed: what no branch took."""
        branches = [times for name, times in self.written.items() if name.startswith("b")]
        whole = self.completed[TEAM] - min(first for first, _ in branches)
        return (whole - max(last - first for first, last in branches)) * 1000

    @property
    def lags_ms(self) -> list[float]:
        """How long after its last token was written each branch was told to have completed."""
        return [(self.completed[name] - last) * 1000 for name, (_, last) in self.written.items() if name.startswith("b")]


async def watched(http: aiohttp.ClientSession, url: str, model: str) -> tuple[Seen, str]:
    seen = Seen()
    async with http.post(f"{url}/api/v1/tasks", json={"query": "go", "model": model}) as response:
        response.raise_for_status()
        run_id = (await response.json())["task_id"]
    async for event in _events(http, f"{url}/api/v1/stream/sse?workflow_id={run_id}"):
        seen.add(event)
    assert seen.result == "WORKFLOW_COMPLETED", seen.result
    return seen, run_id


async def _events(http: aiohttp.ClientSession, url: str) -> AsyncIterator[dict[str, Any]]:
    async with http.get(url) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


async def measure(url: str, durability: str, runs: int) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http:
        await watched(http, url, f"{durability}-{TEAM}")  # warm
        teams = [(await watched(http, url, f"{durability}-{TEAM}"))[0] for _ in range(runs)]
        rows = [await watched(http, url, f"{durability}-{ROW}") for _ in range(runs)]
        history = await _history(http, url, rows[-1][1]) if durability == "durable" else 0
    lags = sorted(lag for team in teams for lag in team.lags_ms)
    added = sorted(team.added_ms for team in teams)
    steps = sorted((row.ended - row.began) * 1000 / AGENTS for row, _ in rows)
    return {
        "runs": runs,
        "broken": 0,
        "added_ms": {"p50": _at(added, 0.5), "max": _at(added, 1.0)},
        "result_lag_ms": {"p50": _at(lags, 0.5), "p99": _at(lags, 0.99)},
        "step_ms": {"p50": _at(steps, 0.5), "max": _at(steps, 1.0)},
        "history_events": history,
    }


async def _history(http: aiohttp.ClientSession, url: str, run_id: str) -> int:
    """Events of the run's workflow, when it has closed, which is a moment after the run's log."""
    async with asyncio.timeout(30.0):
        while True:
            async with http.get(f"{url}/api/v1/tasks/{run_id}/timeline", params={"mode": "full"}) as response:
                events = (await response.json())["events"]
            if events[-1]["type"].startswith("WF_"):
                return len(events)
            await asyncio.sleep(0.1)


def _at(values: list[float], share: float) -> float:
    return round(values[round(share * (len(values) - 1))], 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--durability", choices=("durable", "none"), default="none")
    parser.add_argument("-n", dest="runs", type=int, default=20)
    arguments = parser.parse_args()
    print(json.dumps(uvloop.run(measure(arguments.url, arguments.durability, arguments.runs))))
