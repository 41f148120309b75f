"""Streams chat completions and says what the server's users felt, as one line of JSON.

    python -m bench.load --url http://127.0.0.1:8080/v1/chat/completions --model mock-200-0 -c 32 -n 256 --pid 1234

Measured against `bench.upstream`, whose chunks are stamped: chunks received, time to the first one, the age of each on
arrival, whole streams, and streams that did not end in `[DONE]`. With `--pid`, the CPU time and the peak memory of
the server's processes, children included; cost per chunk does not depend on how quiet the machine is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from bench.tally import STAMP, Meter, Tally

_LONGEST_STAMP = 64
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Plan:
    """What to ask, of whom, and how often."""

    url: str
    model: str
    concurrency: int = 32
    requests: int = 128
    ramp_s: float = 0.0
    timeout_s: float = 120.0
    words: int = 5
    key: str = "sk-bench"
    with_usage: bool = False
    close: bool = False
    headers: Sequence[str] = ()
    pids: Sequence[int] = ()
    label: str = ""

    def request(self) -> bytes:
        body: dict[str, Any] = {"model": self.model, "stream": True}
        body["messages"] = [{"role": "user", "content": "hello " * self.words}]
        if self.with_usage:
            body["stream_options"] = {"include_usage": True}
        raw = json.dumps(body).encode()
        url = urlsplit(self.url)
        lines = [
            f"POST {url.path} HTTP/1.1",
            f"Host: {url.netloc}",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(raw)}",
            *self.headers,
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


class Stream(asyncio.Protocol):
    """One connection, one request at a time. Looks for marks in the raw bytes: parsing them would cost more than serving them."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.ended.set_result(True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def ask(self, request: bytes) -> asyncio.Future[bool]:
        """Resolves when the stream has ended, to whether the connection can be used again."""
        self.ended = asyncio.get_running_loop().create_future()
        self._chunks = 0
        self._complete = self._accepted = False
        self._rest = b""
        self._began = time.monotonic_ns()
        self._transport.write(request)
        return self.ended

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self._accepted:
            self._accepted = data[9:12] == b"200"
            if not self._accepted:
                self._tally.rejected.append(data[:300])
                self._finish(now, usable=False)
                return
        seen = self._rest + data
        end = self._count(seen, now)
        self._complete = self._complete or b"data: [DONE]" in seen
        if seen.endswith(_LAST_CHUNK):
            self._finish(now, usable=True)
        else:
            self._rest = seen[max(end, len(seen) - _LONGEST_STAMP) :]

    def _count(self, seen: bytes, now: int) -> int:
        """Count the stamps; returns where the last one ends."""
        tally, end, before = self._tally, 0, self._chunks
        for match in STAMP.finditer(seen):
            tally.ages.append(now - int(match[1]))
            end = match.end()
            self._chunks += 1
        if self._chunks > before:
            tally.last_chunk = now
            if not before:
                tally.firsts.append(now - self._began)
            if not tally.flow_began and self._chunks > 1:
                tally.flow_began = now
        return end

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(time.monotonic_ns(), usable=False)

    def _finish(self, now: int, *, usable: bool) -> None:
        if self.ended.done():
            return
        tally = self._tally
        tally.totals.append(now - self._began)
        tally.chunks += self._chunks
        tally.done += self._complete
        tally.incomplete += not self._complete
        self.ended.set_result(usable)

    def close(self) -> None:
        self._transport.close()


class Load:
    """Runs a plan. `tally` has what was seen."""

    def __init__(self, plan: Plan) -> None:
        self.tally = Tally()
        self._plan = plan
        self._left = plan.requests
        self._request = plan.request()

    async def run(self) -> dict[str, Any]:
        """The report, ready to be printed."""
        plan, tally = self._plan, self.tally
        async with Meter(plan.pids) as meter:
            meter.begin()
            results = await asyncio.gather(*map(self._worker, range(plan.concurrency)), return_exceptions=True)
            facts = {"label": plan.label, "model": plan.model, "c": plan.concurrency, "n": plan.requests}
            return facts | tally.report(plan.requests, meter.elapsed(), results) | meter.costs(tally.chunks, tally.done)

    async def _worker(self, number: int) -> None:
        plan = self._plan
        url = urlsplit(plan.url)
        host, port = url.hostname or "127.0.0.1", url.port or 80
        stream: Stream | None = None
        await asyncio.sleep(number * plan.ramp_s)
        loop = asyncio.get_running_loop()
        while self._left > 0:
            self._left -= 1
            if stream is None:
                _, stream = await loop.create_connection(lambda: Stream(self.tally), host, port)
            async with asyncio.timeout(plan.timeout_s):
                usable = await stream.ask(self._request)
            if plan.close or not usable:
                stream.close()
                stream = None
        if stream is not None:
            stream.close()


def _plan() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="mock-200-0")
    parser.add_argument("-c", dest="concurrency", type=int, default=32)
    parser.add_argument("-n", dest="requests", type=int, default=128)
    parser.add_argument("--ramp", dest="ramp_s", type=float, default=0.0, help="seconds between the starts of two workers")
    parser.add_argument("--timeout", dest="timeout_s", type=float, default=120.0, help="seconds for one stream")
    parser.add_argument("--words", type=int, default=5, help="length of the prompt")
    parser.add_argument("--key", default="sk-bench")
    parser.add_argument("--usage", dest="with_usage", action="store_true", help="ask for usage at the end")
    parser.add_argument("--close", action="store_true", help="a new connection for every request")
    parser.add_argument("--header", dest="headers", action="append", default=[], help="'Name: value', repeatable")
    parser.add_argument("--pid", dest="pids", type=int, nargs="*", default=[], help="the server's processes")
    parser.add_argument("--label", default="")
    return Plan(**vars(parser.parse_args()))


async def main(plan: Plan) -> None:
    print(json.dumps(await Load(plan).run()))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        uvloop.run(main(_plan()))
