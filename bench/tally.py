"""What was seen of the streams, and what it cost the server: the two halves of every report."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

from bench.processes import Use, total, usage

STAMP = re.compile(rb"t=(\d{9,20}) ")
"""The monotonic time in ns at which the upstream wrote a chunk."""

_LOOK_S = 0.2


class Elapsed(NamedTuple):
    """Time since a measurement began, and the CPU time that the load itself took of it."""

    wall_s: float
    own_s: float


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

    def report(self, requests: int, elapsed: Elapsed, results: Sequence[object]) -> dict[str, Any]:
        """`results` are what the workers came to; exceptions among them are reported."""
        wall_s = elapsed.wall_s
        flow_s = (self.last_chunk - self.flow_began) / 1e9
        errors = [repr(result) for result in results if isinstance(result, BaseException)]
        report: dict[str, Any] = {
            "done": self.done,
            "incomplete": self.incomplete,
            "errors": len(errors),
            "broken": requests - self.done,
            "chunks": self.chunks,
            "wall_s": round(wall_s, 3),
            "load_cpu_share": round(elapsed.own_s / wall_s, 2),
            "chunks_per_s": round(self.chunks / wall_s),
            "flow_chunks_per_s": round((self.chunks - len(self.firsts)) / flow_s) if flow_s > 0 else None,
            "req_per_s": round(self.done / wall_s, 1),
            "ttft_ms": spread(self.firsts),
            "chunk_age_ms": spread(self.ages),
            "total_ms": spread(self.totals),
        }
        if errors:
            report["first_error"] = errors[0]
        if self.rejected:
            report["first_bad"] = self.rejected[0].decode("latin-1")
        return report


class Meter:
    """Entered, it looks after the memory of these processes and their children; from `begin` on, after all that they use."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._at_first = usage(pids)
        self._peak: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._looking.cancel()

    def begin(self) -> None:
        self._before = usage(self._pids)
        self._began, self._cpu_began = time.monotonic(), time.process_time()

    def elapsed(self) -> Elapsed:
        return Elapsed(time.monotonic() - self._began, time.process_time() - self._cpu_began)

    def costs(self, chunks: int, done: int) -> dict[str, Any]:
        """CPU since `begin`, per chunk and per stream; memory at first and at most."""
        before, after = self._before, usage(self._pids)
        if not after:
            return {}
        self._keep(after)
        cpu_s = total(after).cpu_s - total(before).cpu_s
        return {
            "cpu_s": round(cpu_s, 3),
            "cpu_us_per_chunk": round(cpu_s * 1e6 / max(1, chunks), 2),
            "cpu_ms_per_req": round(cpu_s * 1e3 / max(1, done), 3),
            "rss_mb": _mb(total(self._at_first).rss_bytes),
            "rss_peak_mb": _mb(self._peak["total"]),
            "processes": {
                kind: {
                    "cpu_s": round(use.cpu_s - before.get(kind, Use()).cpu_s, 3),
                    "rss_mb": _mb(self._at_first.get(kind, Use()).rss_bytes),
                    "rss_peak_mb": _mb(self._peak[kind]),
                }
                for kind, use in sorted(after.items())
            },
        }

    async def _look(self) -> None:
        while True:
            self._keep(usage(self._pids))
            await asyncio.sleep(_LOOK_S)

    def _keep(self, uses: Mapping[str, Use]) -> None:
        """Keep the peak of each kind of process, and of all together as `total`."""
        for kind, use in (*uses.items(), ("total", total(uses))):
            self._peak[kind] = max(self._peak.get(kind, 0), use.rss_bytes)


def spread(nanoseconds: Sequence[int]) -> dict[str, float] | None:
    """In milliseconds."""
    if not nanoseconds:
        return None
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {
        name: round(ordered[min(last, int(len(ordered) * share))] / 1e6, 3)
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


def _mb(size: int) -> float:
    return round(size / 1e6, 2)
