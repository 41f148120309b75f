"""Has a run watched at a native door and says what the viewers saw, as one line of JSON.

    python -m bench.watch --url http://127.0.0.1:8080 --door sse --model mock-501-20-5000 -c 1000 --pid 1234

Submits one run of one of the models of `bench.upstream`. By default the viewers join while it is held after its first chunk,
all at once, and stay to its end; CPU is counted from when all are there. With `--join said` or `ended`, viewers come when the
run has said all but is not over, or when it is over: `-n` times in all, `-c` at once, and read it from its beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import uvloop
from redis import Redis

from bench.grpc_viewer import GrpcViewer
from bench.tally import Meter, Tally
from bench.upstream import Script
from bench.viewers import SocketViewer, SseViewer, Viewer

_DOORS: dict[str, type[Viewer]] = {"sse": SseViewer, "ws": SocketViewer, "grpc": GrpcViewer}
_AT_ONCE = 32
"""Viewers that join at the same time."""

_SLOW_BUFFER_BYTES = 4096
_SLOW_SEGMENT_BYTES = 1400
"""A slow viewer is not on this machine, whose packets of 64 KB would let the kernel take megabytes for it."""


@dataclass(frozen=True)
class Plan:
    url: str
    grpc_port: int
    redis: str
    door: str
    model: str
    join: Literal["held", "said", "ended"]
    viewers: int
    times: int
    slow: int
    frozen: int
    timeout_s: float
    pids: Sequence[int]

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        return url.hostname or "127.0.0.1", self.grpc_port if self.door == "grpc" else url.port or 80

    @property
    def chunks(self) -> int:
        script = Script.of(self.model)
        if script is None:
            raise SystemExit(f"{self.model} is no model of bench.upstream")
        return script.chunks


class Watch:
    """Carries a plan out."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tally = Tally()

    async def run(self) -> dict[str, Any]:
        """The report, ready to be printed."""
        plan, tally = self._plan, self._tally
        async with asyncio.timeout(plan.timeout_s), Meter(plan.pids) as meter:
            run_id = await asyncio.to_thread(_submit, plan)
            results: Sequence[object] = ()
            if plan.join == "held":
                facts, expected = await self._together(run_id, meter), plan.viewers
            else:
                await self._said(run_id)
                meter.begin()
                results = await asyncio.gather(*self._replays(run_id), return_exceptions=True)
                facts, expected = {}, plan.times
            report = tally.report(expected, meter.elapsed(), results) | meter.costs(tally.chunks, tally.done)
        return {"label": plan.door, "model": plan.model, "c": plan.viewers, "n": expected} | facts | report

    async def _together(self, run_id: str, meter: Meter) -> dict[str, Any]:
        """All viewers from the beginning to the end, the slow ones beside them."""
        plan = self._plan
        turn = asyncio.Semaphore(_AT_ONCE)

        async def join() -> Viewer:
            async with turn:
                viewer = await self._open(run_id, live=True, to_the_end=True)
                await viewer.joined
            return viewer

        viewers = await asyncio.gather(*(join() for _ in range(plan.viewers)))
        with self._others(run_id):
            meter.begin()
            self._tally.chunks = 0
            facts = await asyncio.to_thread(_redis_facts, plan) if plan.redis else {}
            await asyncio.gather(*(viewer.ended for viewer in viewers))
        for viewer in viewers:
            viewer.close()
        return facts

    @contextmanager
    def _others(self, run_id: str) -> Iterator[None]:
        """The viewers who do not keep up. Nothing is expected of them."""
        paces = [1024] * self._plan.slow + [0] * self._plan.frozen
        tasks = [asyncio.create_task(self._dawdle(run_id, bytes_per_s)) for bytes_per_s in paces]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _dawdle(self, run_id: str, bytes_per_s: int) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
            slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SLOW_SEGMENT_BYTES)
            slow.setblocking(False)
            await loop.sock_connect(slow, self._plan.address)
            await loop.sock_sendall(slow, self._viewer(run_id, live=True, to_the_end=True).request())
            while bytes_per_s:
                await loop.sock_recv(slow, bytes_per_s)
                await asyncio.sleep(1)
            await loop.create_future()

    def _replays(self, run_id: str) -> Iterator[asyncio.Task[None]]:
        left = iter(range(self._plan.times))
        to_the_end = self._plan.join == "ended"

        async def replay() -> None:
            for _ in left:
                viewer = await self._open(run_id, live=False, to_the_end=to_the_end)
                await viewer.ended
                viewer.close()

        return (asyncio.create_task(replay()) for _ in range(self._plan.viewers))

    async def _said(self, run_id: str) -> None:
        """Wait until the run has said all that it will say, or has ended."""
        unseen, self._tally = self._tally, Tally()
        viewer = await self._open(run_id, live=False, to_the_end=self._plan.join == "ended")
        await viewer.ended
        viewer.close()
        if not self._tally.done:
            raise SystemExit(f"the run was not seen to its end: {self._tally.rejected or 'events are missing'}")
        self._tally = unseen

    async def _open(self, run_id: str, *, live: bool, to_the_end: bool) -> Viewer:
        make: Callable[[], Viewer] = lambda: self._viewer(run_id, live=live, to_the_end=to_the_end)  # noqa: E731
        _, viewer = await asyncio.get_running_loop().create_connection(make, *self._plan.address)
        return viewer

    def _viewer(self, run_id: str, *, live: bool, to_the_end: bool) -> Viewer:
        return _DOORS[self._plan.door](self._tally, run_id, self._plan.chunks, live=live, to_the_end=to_the_end)


def _submit(plan: Plan) -> str:
    body = json.dumps({"query": "hello", "model": plan.model}).encode()
    request = urllib.request.Request(plan.url + "/api/v1/tasks", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        run_id: str = json.load(answer)["task_id"]
    return run_id


def _redis_facts(plan: Plan) -> dict[str, Any]:
    """How many connections the server has to Redis, and how many runs it has itself notified of."""
    with Redis.from_url(plan.redis) as redis:
        own = redis.client_id()
        connections = [client for client in redis.client_list() if int(client["id"]) != own]
        runs = [name for name in redis.pubsub_channels() if name.endswith(b":live")]
    return {"redis_connections": len(connections), "redis_channels": len(runs)}


def _plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--grpc-port", type=int, default=50052)
    parser.add_argument("--redis", default="", help="its address, to count the connections to it")
    parser.add_argument("--door", choices=list(_DOORS), default="sse")
    parser.add_argument("--model", default="mock-101-20-1000")
    parser.add_argument("--join", choices=("held", "said", "ended"), default="held")
    parser.add_argument("-c", dest="viewers", type=int, default=100)
    parser.add_argument("-n", dest="times", type=int, default=0)
    parser.add_argument("--slow", type=int, default=0, help="more viewers, who read 1 KB/s")
    parser.add_argument("--frozen", type=int, default=0, help="more viewers, who read nothing")
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=120.0)
    parser.add_argument("--pid", dest="pids", type=int, nargs="*", default=[], help="the server's processes")
    return Plan(**vars(parser.parse_args()))


async def main(plan: Plan) -> None:
    print(json.dumps(await Watch(plan).run()))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(_plan()))
