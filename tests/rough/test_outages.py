"""P9, P10, P11: each backend goes away under running streams and comes back. Streams go on; what cannot be done is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, Reading, text_of
from tests.rough.conftest import Serve
from tests.rough.process import paused


async def refused(reading: Reading, within_s: float) -> None:
    """503 with `Retry-After`, in time."""
    await reading.end()
    assert (reading.status, "retry-after" in reading.headers) == (503, True), reading
    assert reading.ended - reading.began <= within_s, reading.ended - reading.began


async def complete(reading: Reading, script: str) -> None:
    await reading.end()
    assert reading.done, reading
    assert reading.text == text_of(script)


async def works_again(asking: Client, url: str, model: str, within_s: float) -> float:
    """How long until a new run is taken and comes to its end."""
    began = time.monotonic()
    while True:
        reading = asking.ask(url, model, "seed 99; say 3 words")
        await reading.end()
        if reading.done:
            return time.monotonic() - began
        assert reading.status == 503, reading
        assert time.monotonic() - began < within_s
        await asyncio.sleep(float(reading.headers["retry-after"]) / 4)


async def test_temporal_away(serve: Serve, upstream: ScriptedServer, asking: Client) -> None:
    """For 3 and for 15 seconds: longer than any heartbeat, so that Temporal believes every attempt dead when it comes back."""
    server = await serve()
    temporal = server.children["temporal"]
    streams = [asking.ask(server.url, model, f"seed {seed}; rate 5/s; say 100 words") for seed, model in enumerate(MODELS)]
    short = [asking.ask(server.url, model, f"seed {seed}; rate 5/s; say 40 words") for seed, model in enumerate(MODELS, 2)]
    await asyncio.gather(*(reading.said(3) for reading in [*streams, *short]))
    for outage_s, seed in ((3.0, 10), (15.0, 20)):
        async with paused(temporal):
            began = time.monotonic()
            new = [asking.ask(server.url, "durable", f"seed {seed + n}; say 3 words") for n in range(3)]
            inline = asking.ask(server.url, "inline", f"seed {seed + 3}; say 3 words")
            await asyncio.gather(*(refused(reading, 2.0) for reading in new))
            await complete(inline, f"seed {seed + 3}; say 3 words")
            await asyncio.sleep(outage_s - (time.monotonic() - began))  # the outage itself
        again = await works_again(asking, server.url, "durable", 10)
        print(f"\nafter {outage_s} s away, durable runs work again after {again:.1f} s")
    for seed, reading in enumerate(streams):
        await complete(reading, f"seed {seed}; rate 5/s; say 100 words")
        assert reading.longest_silence() < 1.5
    for seed, reading in enumerate(short, 2):
        await complete(reading, f"seed {seed}; rate 5/s; say 40 words")
    scripts = [call.key for call in upstream.witness.calls]
    assert [script for script in set(scripts) if scripts.count(script) > 1] == ["/script\nseed 99; say 3 words"]
    assert not any(f"seed {seed};" in script for script in scripts for seed in (10, 11, 12, 20, 21, 22))
    assert server.errors() == []


MODELS = ("durable", "inline")


async def test_temporal_killed(serve: Serve, upstream: ScriptedServer, asking: Client) -> None:
    """Its supervisor starts it again on the same data."""
    server = await serve()
    script = "rate 10/s; say 50 words"
    stream = asking.ask(server.url, "durable", script)
    await stream.said(3)
    os.kill(server.children["temporal"], signal.SIGKILL)
    again = await works_again(asking, server.url, "durable", 15)
    print(f"\ndurable runs work again {again:.1f} s after the kill")
    await complete(stream, script)
    assert stream.longest_silence() < 1.5
    assert sum(call.key.endswith(script) for call in upstream.witness.calls) == 1


async def test_postgres_away(serve: Serve, asking: Client) -> None:
    """Streaming, resuming and cancelling need only the log. The archive catches up."""
    server = await serve()
    script = "rate 20/s; say 40 words"
    async with paused(server.children["postgres"]):
        for model in MODELS:
            stream = asking.ask(server.url, model, script)
            await stream.said(5)
            await complete(asking.resume(server.url, stream.run_id), script)
            await complete(stream, script)
            hanging = asking.ask(server.url, model, "say 3 words; hang")
            await hanging.said(3)
            assert await asking.cancel(server.url, hanging.run_id) == 200
            await hanging.end(within_s=2.0)
            assert hanging.error == "run_cancelled"
        backlog = await asking.metric(server.url, "headgate_archive_backlog", lambda runs: runs >= 4)
    back = time.monotonic()
    await asking.metric(server.url, "headgate_archive_backlog", lambda runs: runs == 0)
    assert (await asking.metrics(server.url))["headgate_archived_runs_total"] == backlog
    print(f"\nbacklog of {backlog:.0f} empty {time.monotonic() - back:.1f} s after PostgreSQL was back")
    assert server.errors() == []


async def test_redis_frozen(serve: Serve, upstream: ScriptedServer, asking: Client) -> None:
    """The upstreams go on and nothing of what they say is lost; whoever reads is kept waiting and told so."""
    server = await serve(runs={"janitor_s": 1.0})
    streams = [asking.ask(server.url, model, f"seed {seed}; rate 20/s; say 160 words") for seed, model in enumerate(MODELS)]
    await asyncio.gather(*(reading.said(20) for reading in streams))
    async with paused(server.children["redis"]):
        frozen = time.monotonic()
        new = [asking.ask(server.url, model, f"seed {seed}; say 3 words") for seed, model in enumerate(MODELS, 10)]
        await asyncio.gather(*(refused(reading, 2.0) for reading in new))
        await asyncio.sleep(2.0 - (time.monotonic() - frozen))
        later = [asking.ask(server.url, model, f"seed {seed}; say 3 words") for seed, model in enumerate(MODELS, 20)]
        await asyncio.gather(*(refused(reading, 2.0) for reading in later))
        print(f"\nrefused after {max(reading.ended - reading.began for reading in [*new, *later]):.2f} s")
        await asyncio.sleep(6.0 - (time.monotonic() - frozen))
    back = time.monotonic()
    for reading in streams:
        assert [at for at in reading.keepalives if frozen + 1.0 < at < back], "no sign of life during the outage"
    again = await asyncio.gather(*(works_again(asking, server.url, model, 10) for model in MODELS))
    print(f"works again after {max(again):.1f} s")
    for seed, reading in enumerate(streams):
        await complete(reading, f"seed {seed}; rate 20/s; say 160 words")
        print(f"silent for {reading.longest_silence():.1f} s")
        replayed = asking.resume(server.url, reading.run_id)
        await replayed.end()
        assert replayed.chunks == reading.chunks
    await asking.metric(server.url, "headgate_active_runs", lambda runs: runs == 0)
    await asyncio.sleep(5.0)  # a round of the janitor and its grace: time enough to start what should not be started
    scripts = [call.key for call in upstream.witness.calls if "seed 99" not in call.key]
    assert len(scripts) == len(streams), scripts
    assert server.errors() == []


async def test_redis_killed(serve: Serve, upstream: ScriptedServer, asking: Client) -> None:
    """Its supervisor starts it again. What was acknowledged is in the file, so both streams go on exactly."""
    server = await serve()
    streams = [asking.ask(server.url, model, f"seed {seed}; rate 50/s; say 150 words") for seed, model in enumerate(MODELS)]
    await asyncio.gather(*(reading.said(50) for reading in streams))
    os.kill(server.children["redis"], signal.SIGKILL)
    for seed, reading in enumerate(streams):
        await reading.end()
        replayed = asking.resume(server.url, reading.run_id)
        await replayed.end()
        print(f"\n{reading.error or 'whole'}, silent for {reading.longest_silence():.1f} s")
        assert reading.chunks == replayed.chunks
        assert reading.done, reading
        assert reading.text == text_of(f"seed {seed}; rate 50/s; say 150 words")
    assert len(upstream.witness.calls) == len(streams)
