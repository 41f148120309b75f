"""P24: after hundreds of requests of all kinds, the process holds what it held before."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import psutil
from redis.asyncio import Redis

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, Reading
from tests.rough.conftest import Serve
from tests.rough.process import Backends, Headgate

KINDS = (
    "say 5 words",
    "say 5 words; cut",
    "status 429",
    "garbage",
    "rate 50/s; say 10 words",
    "say 5 words; hang",
    "wait 60s",
)
ENDLESS = KINDS[-2:]
ROUNDS = 9
SETTLE_S = 20.0
SLACK = 5


async def holdings(server: Headgate, redis: Redis, asking: Client, upstream: ScriptedServer) -> dict[str, float]:
    """What the process holds. Idle connections to the upstream and from clients are kept on purpose."""
    process = psutil.Process(server.pid)
    upstream_port, own_port = urlsplit(upstream.base_url).port, urlsplit(server.url).port
    idle = sum(
        bool(connection.raddr) and (connection.raddr.port == upstream_port or connection.laddr.port == own_port)
        for connection in process.net_connections("tcp")
    )
    metrics = await asking.metrics(server.url)
    return {
        "descriptors": process.num_fds() - idle,
        "redis connections": len(await redis.client_list()),
        "redis subscriptions": len(await redis.pubsub_channels()),
        "streams": metrics["headgate_active_streams"],
        "runs": metrics["headgate_active_runs"],
    }


async def settled(server: Headgate, redis: Redis, asking: Client, upstream: ScriptedServer) -> dict[str, float]:
    """The same when every run has ended and none is watched. Rings linger for five seconds, for readers about to come back."""
    async with asyncio.timeout(SETTLE_S):
        while True:
            held = await holdings(server, redis, asking, upstream)
            if held["redis subscriptions"] <= 1 and not held["runs"]:
                return held
            await asyncio.sleep(0.25)


async def ask_all(asking: Client, server: Headgate, number: int) -> None:
    """Every kind of script at both models, streamed and whole; what would not end by itself is left, or cancelled."""
    readings: list[tuple[str, Reading]] = []
    for kind in KINDS:
        for model in ("durable", "inline"):
            for stream in (True, False):
                reading = asking.ask(server.url, model, f"seed {number}; {kind}", stream=stream)
                readings.append((kind, reading))
    endless = [reading for kind, reading in readings if kind in ENDLESS]
    await asyncio.gather(*(reading.end() for kind, reading in readings if kind not in ENDLESS))
    resumed = [asking.resume(server.url, reading.run_id) for reading in endless if reading.status]
    await asyncio.gather(*(reading.until(lambda self: self.status > 0) for reading in resumed))
    for reading in resumed[::2]:
        await asking.cancel(server.url, reading.run_id)
    for reading in [*endless, *resumed]:
        await reading.leave()


async def test_nothing_is_held_for_requests_that_are_over(
    serve: Serve, backends: Backends, upstream: ScriptedServer, asking: Client
) -> None:
    server = await serve(backends)
    async with Redis.from_url(backends.addresses.redis, decode_responses=True) as redis:
        await ask_all(asking, server, 0)
        before = await settled(server, redis, asking, upstream)
        for number in range(1, ROUNDS, 2):
            await asyncio.gather(ask_all(asking, server, number), ask_all(asking, server, number + 1))
        after = await settled(server, redis, asking, upstream)
    print(f"\nbefore {before}\nafter  {after}")
    assert after["descriptors"] <= before.pop("descriptors") + SLACK
    assert {name: after[name] for name in before} == before
    assert server.errors() == []
