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
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import uvloop

from bench.processes import Use, total, usage

_STAMP = re.compile(rb"t=(\d{9,20}) ")
_LONGEST_STAMP = 64
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_WATCH_S = 0.2


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


@dataclass
class Tally:
    """What was seen so far. Times in nanoseconds."""

    ages: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    rejected: list[bytes] = field(default_factory=list)
    chunks: int = 0
    done: int = 0
    incomplete: int = 0
    flow_began: int = 0
    """When the first stream received its second chunk, and so really flowed."""
    last_chunk: int = 0


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
        for match in _STAMP.finditer(seen):
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
        plan = self._plan
        before = usage(plan.pids)
        peak: dict[str, int] = {}
        watch = asyncio.create_task(self._watch(peak))
        began, cpu_began = time.monotonic(), time.process_time()
        results = await asyncio.gather(*map(self._worker, range(plan.concurrency)), return_exceptions=True)
        wall_s, own_s = time.monotonic() - began, time.process_time() - cpu_began
        after = usage(plan.pids)
        watch.cancel()
        errors = [repr(result) for result in results if isinstance(result, BaseException)]
        return _report(plan, self.tally, wall_s, own_s, errors) | _costs(self.tally, before, after, peak)

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

    async def _watch(self, peak: dict[str, int]) -> None:
        """Keep the peak of each kind of process, and of all together as `total`."""
        while True:
            uses = usage(self._plan.pids)
            for kind, use in (*uses.items(), ("total", total(uses))):
                peak[kind] = max(peak.get(kind, 0), use.rss_bytes)
            await asyncio.sleep(_WATCH_S)


def _report(plan: Plan, tally: Tally, wall_s: float, own_s: float, errors: Sequence[str]) -> dict[str, Any]:
    flow_s = (tally.last_chunk - tally.flow_began) / 1e9
    report: dict[str, Any] = {
        "label": plan.label,
        "model": plan.model,
        "c": plan.concurrency,
        "n": plan.requests,
        "done": tally.done,
        "incomplete": tally.incomplete,
        "errors": len(errors),
        "broken": plan.requests - tally.done,
        "chunks": tally.chunks,
        "wall_s": round(wall_s, 3),
        "load_cpu_share": round(own_s / wall_s, 2),
        "chunks_per_s": round(tally.chunks / wall_s),
        "flow_chunks_per_s": round((tally.chunks - len(tally.firsts)) / flow_s) if flow_s > 0 else None,
        "req_per_s": round(tally.done / wall_s, 1),
        "ttft_ms": _spread(tally.firsts),
        "chunk_age_ms": _spread(tally.ages),
        "total_ms": _spread(tally.totals),
    }
    if errors:
        report["first_error"] = errors[0]
    if tally.rejected:
        report["first_bad"] = tally.rejected[0].decode("latin-1")
    return report


def _costs(tally: Tally, before: Mapping[str, Use], after: Mapping[str, Use], peak: Mapping[str, int]) -> dict[str, Any]:
    if not after:
        return {}
    cpu_s = total(after).cpu_s - total(before).cpu_s
    return {
        "cpu_s": round(cpu_s, 3),
        "cpu_us_per_chunk": round(cpu_s * 1e6 / max(1, tally.chunks), 2),
        "cpu_ms_per_req": round(cpu_s * 1e3 / max(1, tally.done), 3),
        "rss_mb": round(total(before).rss_bytes / 1e6, 1),
        "rss_peak_mb": round(peak["total"] / 1e6, 1),
        "processes": {
            kind: {
                "cpu_s": round(use.cpu_s - before.get(kind, Use()).cpu_s, 3),
                "rss_mb": round(before.get(kind, Use()).rss_bytes / 1e6, 1),
                "rss_peak_mb": round(peak.get(kind, 0) / 1e6, 1),
            }
            for kind, use in sorted(after.items())
        },
    }


def _spread(nanoseconds: list[int]) -> dict[str, float] | None:
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(len(ordered) * share))] / 1e6, 3)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


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
