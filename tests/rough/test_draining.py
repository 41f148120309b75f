"""P19: SIGTERM is quiet. What can finish finishes; what cannot is told so, and its run goes on elsewhere at once."""

from __future__ import annotations

import asyncio
import signal
import time

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, text_of
from tests.rough.conftest import Serve
from tests.rough.process import Backends

DRAIN_S = 1.5
MODELS = ("durable", "inline")
SHORT = "say 3 words; wait 1s; say 3 words"
LONG = "rate 50/s; say 275 words"


async def test_a_drained_servers_runs_go_on_elsewhere(
    serve: Serve, backends: Backends, upstream: ScriptedServer, asking: Client
) -> None:
    server = {"port": 0, "drain_s": DRAIN_S}
    leaving, living = await asyncio.gather(serve(backends, server=server), serve(backends, server=server))
    short = [asking.ask(leaving.url, model, SHORT) for model in MODELS]
    long = {model: asking.ask(leaving.url, model, LONG) for model in MODELS}
    await asyncio.gather(*(reading.said(3) for reading in [*short, *long.values()]))
    leaving.signal(signal.SIGTERM)
    began = time.monotonic()
    while await asking.ready(leaving.url):  # noqa: ASYNC110 - it can only be asked for
        await asyncio.sleep(0.01)
    refused = asking.ask(leaving.url, "inline", "say 1 word")
    await refused.end()
    assert (refused.status, refused.error, "retry-after" in refused.headers) == (503, "draining", True)
    for reading in short:
        await reading.end()
        assert reading.done, reading
        assert reading.text == text_of(SHORT)
    for reading in long.values():
        await reading.end()
        assert (reading.ending, reading.error, reading.done) == ("whole", "draining", False), reading
    rest = asking.resume(living.url, long["durable"].run_id, len(long["durable"].chunks) - 1)
    lost = asking.resume(living.url, long["inline"].run_id)
    assert await leaving.exited() == 0
    stopped = time.monotonic() - began
    await asyncio.gather(rest.end(), lost.end())
    assert rest.done, rest
    whole = asking.resume(living.url, long["durable"].run_id)
    await whole.end()
    assert long["durable"].chunks[:-1] + rest.chunks == whole.chunks
    assert whole.text == text_of(LONG)
    assert (lost.error, lost.done) == ("server_shutdown", False)
    again = upstream.witness.calls[-1].started - began
    print(f"\nstopped after {stopped:.1f} s, taken over after {again:.1f} s")
    assert stopped <= DRAIN_S + 5.0
    assert len(upstream.witness.calls) == 5
    for each in (leaving, living):
        assert each.errors() == []
