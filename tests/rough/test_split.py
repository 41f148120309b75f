"""Gateways, orchestrators and workers as processes of their own, killed under open streams: clients see a pause at most."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import psutil

from tests.rough.client import Client, Reading, text_of
from tests.rough.conftest import Serve
from tests.rough.process import Backends, Headgate

FLOWING = "rate 20/s; say 80 words"


def inside(**more: Any) -> dict[str, Any]:
    return {"role": "orchestrator", "orchestrator": {"port": 0}, **more}


def outside(*orchestrators: Headgate, **more: Any) -> dict[str, Any]:
    return {"role": "gateway", "orchestrator": {"urls": [each.url for each in orchestrators]}, **more}


def assert_exact(reading: Reading, script: str) -> None:
    assert reading.done, reading
    assert reading.text == text_of(script)


async def test_killing_an_orchestrator_is_a_pause(serve: Serve, backends: Backends, asking: Client) -> None:
    """Two gateways and two orchestrators on one Redis. The runs of the one that dies are taken over by the other, and the streams
    that were read through it go on through the other: nobody's connection breaks, nothing is missing, nothing comes twice.
    """
    first, second = await asyncio.gather(serve(backends, **inside()), serve(backends, **inside()))
    gateways = await asyncio.gather(*(serve(backends, **outside(first, second)) for _ in range(2)))
    scripts = [f"seed {seed}; {FLOWING}" for seed in range(6)]
    readings = [asking.ask(gateways[number % 2].url, "durable", script) for number, script in enumerate(scripts)]
    for reading in readings:
        await reading.said(20)
    killed = await first.kill9()
    viewing = [asking.resume(gateways[(number + 1) % 2].url, reading.run_id) for number, reading in enumerate(readings)]
    await asyncio.gather(*(reading.end(60) for reading in [*readings, *viewing]))
    for reading, viewed, script in zip(readings, viewing, scripts, strict=True):
        assert_exact(reading, script)
        assert reading.chunks == viewed.chunks
    print("\nlongest silences:", [f"{reading.longest_silence(killed):.1f}" for reading in readings])
    assert [server.errors() for server in (*gateways, second)] == [[], [], []]


async def test_restarting_the_only_orchestrator_is_a_pause(serve: Serve, backends: Backends, asking: Client) -> None:
    """Keepalives go on meanwhile, and what is asked meanwhile is refused at once instead of hanging."""
    orchestrator = await serve(backends, **inside())
    gateway = await serve(backends, **outside(orchestrator))
    script = f"seed 1; {FLOWING}"
    reading = asking.ask(gateway.url, "durable", script)
    await reading.said(20)
    killed = await orchestrator.kill9()
    refused = asking.ask(gateway.url, "durable", script)
    await refused.end(5)
    assert (refused.status, refused.error) == (503, "backend_unavailable")
    alive = len(reading.keepalives)
    await reading.until(lambda reading: len(reading.keepalives) > alive)
    await orchestrator.start()
    await reading.end(60)
    assert_exact(reading, script)
    print(f"\nsilent for {reading.longest_silence(killed):.1f} s")
    assert gateway.errors() == []


def workers(server: Headgate) -> set[int]:
    return {each.pid for each in psutil.Process(server.pid).children() if "--worker" in each.cmdline()}


async def eventually(reached: Callable[[], bool], within_s: float = 30.0) -> None:
    """Processes of processes can only be looked at."""
    async with asyncio.timeout(within_s):
        while not reached():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_worker_that_dies_is_replaced_and_its_streams_resume(serve: Serve, asking: Client) -> None:
    """Two workers on one port, over backends that their parent started. Streams of the other one do not notice."""
    server = await serve(server={"port": 0, "drain_s": 1.0, "workers": 2})
    before = workers(server)
    assert len(before) == 2
    scripts = [f"seed {seed}; {FLOWING}" for seed in range(6)]
    readings = [asking.ask(server.url, "durable", script) for script in scripts]
    for reading in readings:
        await reading.said(20)
    lost = min(before)
    psutil.Process(lost).kill()
    for reading, script in zip(readings, scripts, strict=True):
        await reading.end(60)
        if reading.ending == "broken":
            rest = asking.resume(server.url, reading.run_id, len(reading.chunks))
            await rest.end(60)
            assert rest.done, rest
            reading.chunks += rest.chunks
        assert reading.text == text_of(script)
    await eventually(lambda: len(workers(server)) == 2)
    after = workers(server)
    assert (lost in after, len(after & before)) == (False, 1)
    assert await server.stop() == 0
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in after))
    assert server.errors() == []


async def test_workers_do_not_outlive_their_parent(serve: Serve, backends: Backends) -> None:
    server = await serve(backends, server={"port": 0, "drain_s": 1.0, "workers": 2})
    orphans = workers(server)
    server.signal(signal.SIGKILL)
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in orphans))
