"""P13, P14: a client that leaves, and a cancel, reach the upstream's socket, before the first token too and across processes."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.upstreams.scripted_server import ScriptedServer
from orchestrator.upstreams.witness import ScriptedCall
from tests.rough.client import Client
from tests.rough.conftest import Serve
from tests.rough.process import Backends

SILENT = "seed {}; wait 60s; say 1 word"
TALKING = "seed {}; rate 20/s; say 1000 words"


async def closed(call: ScriptedCall, since: float) -> float:
    """How long after `since` the upstream's socket was closed by whoever asked."""
    async with asyncio.timeout(5.0):
        await call.closed.wait()
    assert call.ending == "cancelled"
    assert call.ended is not None
    return call.ended - since


@pytest.mark.parametrize("script", [SILENT, TALKING], ids=["before the first token", "mid-answer"])
async def test_leaving_and_cancelling_close_the_upstream(
    serve: Serve, backends: Backends, upstream: ScriptedServer, asking: Client, script: str
) -> None:
    here, there = await asyncio.gather(serve(backends), serve(backends))
    took: dict[str, float] = {}
    for model in ("durable", "inline"):
        for how, server in (("left", None), ("cancelled here", here), ("cancelled there", there)):
            number = len(upstream.witness.calls)
            reading = asking.ask(here.url, model, script.format(number))
            call = await upstream.witness.nth(number)
            await reading.said(5 if script is TALKING else 0)
            watching = asking.resume(there.url, reading.run_id)
            await watching.until(lambda self: self.status > 0)
            since = time.monotonic()
            if server is None:
                await reading.leave()
            else:
                assert await asking.cancel(server.url, reading.run_id) == 200
                assert await asking.cancel(server.url, reading.run_id) == 200
            took[f"{model} {how}"] = await closed(call, since)
            for reader in [watching] if server is None else [watching, reading]:
                await reader.end(within_s=5.0)
                assert (reader.error, reader.done) == ("run_cancelled", False)
    print("\n", {how: f"{seconds * 1000:.0f} ms" for how, seconds in took.items()})
    for how, seconds in took.items():
        assert seconds <= (1.5 if "there" in how else 0.5), took
    for server in (here, there):
        assert server.errors() == []
        metrics = await asking.metrics(server.url)
        assert metrics["headgate_active_streams"] == 0
