"""A server killed while the branches of a plan run: its stream, resumed by id, comes to the right end."""

from __future__ import annotations

from collections import Counter
from typing import Any

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import MARKER, Client
from tests.rough.conftest import Serve


def agent(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "remote", "input": f"{MARKER}{script}", **more}}


RESEARCH = {
    "sequential": [
        agent("planner", 'say "rivers and bridges"'),
        {"parallel": [agent("rivers", 'say "wet"'), agent("bridges", 'say "high "; once hang; say "up"')]},
        agent("writer", 'say {{ (outputs.rivers + " and " + outputs.bridges)|tojson }}', answers=True),
    ]
}


async def test_a_server_killed_in_a_parallel_step_asks_no_branch_twice_that_had_ended(
    serve: Serve, upstream: ScriptedServer, asking: Client
) -> None:
    """P7: the planner and one of two branches have ended when it is killed. The chat stream is then resumed by its id."""
    server = await serve(models={"research": {"plan": RESEARCH}})
    before = asking.ask(server.url, "research", "ignored", headgate_options={"events": True})
    await before.until(lambda reading: any("bridges" in chunk and "high" in chunk for chunk in reading.chunks))
    await before.until(lambda reading: any("rivers" in chunk and "AGENT_COMPLETED" in chunk for chunk in reading.chunks))
    await server.restart()
    await before.end()
    assert before.ending == "broken"

    whole = asking.resume(server.url, before.run_id)
    rest = asking.resume(server.url, before.run_id, len(before.chunks))
    await whole.end()
    await rest.end()
    assert whole.done, whole
    assert whole.text == "wet and high up"
    assert before.chunks + rest.chunks == whole.chunks
    calls = Counter(call.body["messages"][-1]["content"].partition("say ")[2] for call in upstream.witness.calls)
    assert sorted(calls.values()) == [1, 1, 1, 2]
    assert calls['"high "; once hang; say "up"'] == 2
    assert server.errors() == []
