"""P21: a run waits for people longer than any process lives."""

from __future__ import annotations

import asyncio

import aiohttp

from tests.rough.conftest import Serve

SAY = {"agent": {"name": "last", "upstream": "demo", "input": '/script\nsay "done"', "answers": True}}
SETTINGS = {
    "upstreams": {"demo": {"kind": "scripted"}},
    "models": {"asks": {"plan": {"sequential": [{"approval": {"name": "ok", "action": "pay"}}, SAY]}}},
}


async def test_decided_after_every_process_was_killed(serve: Serve) -> None:
    """The server goes with its Redis, its Temporal and its PostgreSQL, all by kill -9, while the run waits."""
    server = await serve(**SETTINGS)
    async with aiohttp.ClientSession() as http:
        asked = {"query": "rent", "model": "asks"}
        async with http.post(f"{server.url}/api/v1/tasks", json=asked) as response:
            run_id = (await response.json())["task_id"]
        stream = f"{server.url}/api/v1/stream/sse?workflow_id={run_id}&types=APPROVAL_REQUESTED"
        async with http.get(stream) as response:
            while b"APPROVAL_REQUESTED" not in await response.content.readline():
                pass
        await asyncio.sleep(1.1)  # what the embedded Redis may lose is the last second
        await server.restart()
        async with http.get(f"{server.url}/api/v1/approvals") as response:
            (waiting,) = (await response.json())["approvals"]
        assert (waiting["workflow_id"], waiting["approval_id"], waiting["proposed_action"]) == (run_id, "ok", "pay")
        decision = {"workflow_id": run_id, "approval_id": "ok", "approved": True}
        async with http.post(f"{server.url}/api/v1/approvals/decision", json=decision) as response:
            assert response.status == 200, await response.text()
        async with asyncio.timeout(30), http.get(f"{server.url}/api/v1/stream/sse?workflow_id={run_id}") as response:
            await response.read()
        async with http.get(f"{server.url}/api/v1/tasks/{run_id}") as response:
            task = await response.json()
        assert (task["status"], task["result"]) == ("COMPLETED", "done")
        async with http.post(f"{server.url}/api/v1/approvals/decision", json=decision) as response:
            assert response.status == 409
    assert server.errors() == []
