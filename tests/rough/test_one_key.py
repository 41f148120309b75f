"""P12: one idempotency key, one run, however many ask for it, wherever they ask, and whoever is killed meanwhile."""

from __future__ import annotations

import asyncio

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, Reading, text_of
from tests.rough.conftest import Serve
from tests.rough.process import Backends
from tests.rough.test_split import inside, outside

CALLERS = 200
SCRIPT = "rate 40/s; say 160 words"


async def test_two_hundred_callers_are_one_upstream_request_though_a_gateway_is_killed(
    serve: Serve, backends: Backends, upstream: ScriptedServer, asking: Client
) -> None:
    """Two gateways; the one that began the run is killed in half, and its callers ask again with their key at the other."""
    orchestrator = await serve(backends, **inside())
    dying, living = await asyncio.gather(*(serve(backends, **outside(orchestrator)) for _ in range(2)))

    def ask(url: str) -> Reading:
        return asking.ask(url, "durable", SCRIPT, key="one")

    begun = ask(dying.url)
    await begun.said(1)
    readings = [begun, *(ask((dying, living)[number % 2].url) for number in range(1, CALLERS))]
    await asyncio.gather(*(reading.said(40) for reading in readings))
    await dying.kill9()
    await asyncio.gather(*(reading.end() for reading in readings[::2]))
    assert {reading.ending for reading in readings[::2]} == {"broken"}
    repeated = [ask(living.url) for _ in readings[::2]]
    other = asking.ask(living.url, "durable", "say 2 words", key="one")
    late = [*readings[1::2], *repeated]
    await asyncio.gather(*(reading.end() for reading in [*late, other]))

    assert len(upstream.witness.calls) == 1
    assert {reading.run_id for reading in [*readings, *repeated]} == {begun.run_id}
    assert begun.text == text_of(SCRIPT)[: len(begun.text)]
    assert late[0].done
    assert late[0].text == text_of(SCRIPT)
    assert all(reading.chunks == late[0].chunks for reading in late)
    assert all(reading.chunks == late[0].chunks[: len(reading.chunks)] for reading in readings[::2])
    assert "idempotency-replayed" not in begun.headers
    assert {reading.headers.get("idempotency-replayed") for reading in [*readings[1:], *repeated]} == {"true"}
    assert (other.status, other.error) == (409, "idempotency_key_reused")
    assert [server.errors() for server in (living, orchestrator)] == [[], []]
