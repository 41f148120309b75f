"""What others feel while somebody attacks: paced streams measured alone, then beside each attack. `python -m bench.attacks`.

One process of the attacker per kind, as fast as it can, on the core of the load, from which the servers are apart. The promise is
that the others' chunks at p99 are less than twice as old as without the attack (promises: Exhaustion).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
from grpc import aio

from bench.processes import on_core
from bench.servers import Cores, Target, serving
from protos.orchestrator_pb2 import SubmitTaskRequest
from protos.orchestrator_pb2_grpc import OrchestratorServiceStub

Report = dict[str, Any]

MODEL = "mock-200-20"
BOUND = 2.0

_CHAT = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_DEEP = b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_LONG = json.dumps({"model": "mock-1-0", "stream": True, "messages": [{"role": "user", "content": "a" * 4_000_000}]}).encode()
_ASK = json.dumps({"model": "mock-2000-0", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()


async def send(port: int, data: bytes, *, wait: bool = True, times: int = 1) -> None:
    """One connection. `wait`: read whatever is answered, to its end."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(times):
            writer.write(data)
            await writer.drain()
        if wait:
            await reader.read()
        else:
            await asyncio.sleep(3600)
        writer.close()


def posted(body: bytes, more: str = "Connection: close\r\n") -> bytes:
    return f"{_CHAT}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def again(count: int, attack: Callable[[], Awaitable[None]]) -> None:
    """So many at a time, for ever."""

    async def one() -> None:
        while True:
            await attack()

    await asyncio.gather(*(one() for _ in range(count)))


async def nothing(target: Target) -> None:
    await asyncio.sleep(3600)


async def slow_headers(target: Target) -> None:
    await again(500, lambda: send(_port(target), b"GET / HTTP/1.1\r\nHost: localhost\r\nA: "))


async def bodies_that_never_come(target: Target) -> None:
    await again(500, lambda: send(_port(target), f"{_CHAT}Content-Length: 1000\r\n\r\n".encode(), wait=False))


async def readers_that_never_read(target: Target) -> None:
    await again(50, lambda: send(_port(target), posted(_ASK), wait=False))


async def deep_bodies(target: Target) -> None:
    await again(4, lambda: send(_port(target), posted(_DEEP)))


async def long_prompts(target: Target) -> None:
    await again(2, lambda: send(_port(target), posted(_LONG)))


async def broken_requests(target: Target) -> None:
    await again(20, lambda: send(_port(target), b"GET /\0 HTTP/1.1\r\n\r\n"))


async def calls(target: Target) -> None:
    async with aio.insecure_channel(f"127.0.0.1:{target.grpc_port}") as channel:
        stub: Any = OrchestratorServiceStub(channel)  # type: ignore[no-untyped-call]

        async def call() -> None:
            with suppress(grpc.RpcError):
                await stub.SubmitTask(SubmitTaskRequest(query="", model="m"))

        await again(100, call)


ATTACKS: Mapping[str, Callable[[Target], Awaitable[None]]] = {
    attack.__name__: attack
    for attack in (
        nothing,
        slow_headers,
        bodies_that_never_come,
        readers_that_never_read,
        deep_bodies,
        long_prompts,
        broken_requests,
        calls,
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.attacks")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(ATTACKS))
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.attack:
        os.nice(5)
        asyncio.run(ATTACKS[asked.attack](Target(**json.loads(asked.at))))  # type: ignore[arg-type]
        return 0
    cores = Cores.of_machine()
    with (
        tempfile.TemporaryDirectory(prefix="headgate-attacks-") as folder,
        serving(["none", "native"], Path(folder), cores, None) as targets,
    ):
        _felt(targets["none"], 20, cores)
        reports = {name: _beside(name, targets, asked.streams, cores) for name in dict.fromkeys(["nothing", *asked.only])}
    results = {name: _result(report, reports["nothing"]) for name, report in reports.items()}
    for name, result in results.items():
        print(f"{name:26} p99 {result['p99_ms']:8.2f} ms   x {result['times']:5.2f}   broken {result['broken']}")
    if asked.output:
        asked.output.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(result["times"] >= BOUND or result["broken"] for result in results.values()))


def _result(report: Report, alone: Report) -> Report:
    p99 = report["chunk_age_ms"]["p99"]
    return {"p99_ms": p99, "times": round(p99 / alone["chunk_age_ms"]["p99"], 2), "broken": report["broken"]}


def _beside(name: str, targets: Mapping[str, Target], streams: int, cores: Cores) -> Report:
    """What others feel beside this attack."""
    native = targets["native"]
    at = json.dumps({"name": "native", "url": native.url, "pid": native.pid, "grpc_port": native.grpc_port})
    with on_core(cores.load), subprocess.Popen([sys.executable, "-m", "bench.attacks", "--attack", name, "--at", at]) as attacker:
        try:
            return _felt(targets["none"], streams, cores)
        finally:
            attacker.kill()


def _felt(target: Target, streams: int, cores: Cores) -> Report:
    command = [
        sys.executable,
        "-m",
        "bench.load",
        "--url",
        target.url,
        "--model",
        MODEL,
        "-c",
        str(streams),
        "-n",
        str(streams * 2),
    ]
    with on_core(cores.load):
        report: Report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return report


def _port(target: Target) -> int:
    return urlsplit(target.url).port or 80


if __name__ == "__main__":
    sys.exit(main())
