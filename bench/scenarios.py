"""What is measured, and what is promised about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Measured = Mapping[tuple[str, str], Mapping[str, Any]]
"""By scenario and target: the report of `bench.load` with the median of the rounds for each number."""


@dataclass(frozen=True)
class Chats:
    """One kind of load with chat completions, put on each target in turn. `quick` is the number of requests in a smoke run."""

    name: str
    about: str
    model: str
    concurrency: int
    requests: int
    quick: int
    targets: tuple[str, ...]
    ramp_s: float = 0.0

    def scaled(self, quick: bool) -> tuple[int, int]:
        """Concurrency and number of requests."""
        requests = self.quick if quick else self.requests
        return min(self.concurrency, requests), requests


@dataclass(frozen=True)
class Way:
    """A way to watch a run; the options are those of `bench.watch`. `quick` is the model of a smoke run."""

    name: str
    door: str
    model: str
    quick: str
    join: str = "held"
    slow: int = 0
    frozen: int = 0


@dataclass(frozen=True)
class Views:
    """One run and those who watch it at the native doors, each way in turn. Of `times`, that many viewers one after the other."""

    name: str
    about: str
    ways: tuple[Way, ...]
    viewers: int
    quick: int
    times: int = 0

    def scaled(self, quick: bool) -> tuple[int, int]:
        """Viewers at a time, and how often the run is read if they are not there from its beginning."""
        return (self.quick, self.times // 4) if quick else (self.viewers, self.times)


@dataclass(frozen=True)
class Plans:
    """Runs of plans with many agents, durable and not in turn; see `bench.plans`."""

    name: str
    about: str
    runs: int
    quick: int


PLANS = (Plans("plans", "20 agents at once, and 20 in a row", 20, 2),)

CHATS = (
    Chats("burst", "500 chunks as fast as they are read", "mock-500-0", 32, 256, 64, ("ceiling", "none", "durable")),
    Chats(
        "flow",
        "as burst, after everybody has the first token",
        "mock-4000-0-3000",
        32,
        32,
        8,
        ("ceiling", "none", "durable"),
    ),
    Chats("paced", "100 chunks per second and stream", "mock-500-10", 20, 20, 5, ("ceiling", "none", "durable")),
    Chats("short", "requests of 5 chunks", "mock-5-0", 8, 2000, 200, ("ceiling", "none", "durable", "guarded")),
    Chats("ttft", "one request at a time", "mock-5-0", 1, 200, 30, ("direct", "ceiling", "none", "durable")),
    Chats("many", "2 chunks per second and stream", "mock-20-500", 1000, 1000, 50, ("ceiling", "none"), ramp_s=0.004),
)

DOORS = ("sse", "ws", "grpc")

VIEWS = (
    Views(
        "viewers",
        "50 events/s, everybody from the beginning",
        (Way("sse", "sse", "mock-501-20-6000", "mock-26-20-300"),),
        1000,
        50,
    ),
    Views(
        "slow",
        "200 events/s, without and with one that reads 1 KB/s and one that reads nothing",
        (
            Way("without", "sse", "mock-2001-5-2000", "mock-101-5-300"),
            Way("with", "sse", "mock-2001-5-2000", "mock-101-5-300", slow=1, frozen=1),
        ),
        98,
        20,
    ),
    Views(
        "resume",
        "10,000 events from the beginning, of a run that is over and of one that goes on",
        tuple(
            Way(f"{door} {join}", door, "mock-10000-0-0-15000", "mock-2000-0-0-2000", join)
            for join in ("said", "ended")
            for door in DOORS
        ),
        1,
        1,
        times=10,
    ),
    Views("paced-doors", "50 events/s", tuple(Way(door, door, "mock-501-20-2000", "mock-26-20-300") for door in DOORS), 100, 20),
    Views(
        "burst-doors",
        "2,000 events of a run that is over, as fast as they are read",
        tuple(Way(door, door, "mock-2000-0", "mock-500-0", "ended") for door in DOORS),
        100,
        20,
        times=200,
    ),
)


@dataclass(frozen=True)
class Promise:
    """A number that we promise. `value` raises KeyError when the run did not measure what it needs."""

    name: str
    unit: str
    limit: float
    value: Callable[[Measured], float]
    at_least: bool = False

    def kept(self, got: float) -> bool:
        return got >= self.limit if self.at_least else got <= self.limit


def number(measured: Measured, scenario: str, target: str, path: str) -> float:
    """A number of a report by its dotted path."""
    value: Any = measured[scenario, target]
    for key in path.split("."):
        value = value[key]
    return float(value)


def _ratio(scenario: str, target: str, other: str, path: str) -> Callable[[Measured], float]:
    return lambda measured: number(measured, scenario, target, path) / number(measured, scenario, other, path)


def _above(scenario: str, target: str, other: str, path: str) -> Callable[[Measured], float]:
    return lambda measured: number(measured, scenario, target, path) - number(measured, scenario, other, path)


def _of(scenario: str, target: str, path: str) -> Callable[[Measured], float]:
    return lambda measured: number(measured, scenario, target, path)


def _memory_kb(scenario: str, target: str, kind: str = "") -> Callable[[Measured], float]:
    """What a stream adds to the memory of the server, or of one kind of its processes."""
    where = f"processes.{kind}." if kind else ""

    def grown(measured: Measured) -> float:
        at_first, at_most = (number(measured, scenario, target, where + path) for path in ("rss_mb", "rss_peak_mb"))
        return (at_most - at_first) * 1000 / number(measured, scenario, target, "c")

    return grown


def _broken(measured: Measured) -> float:
    return sum(number(measured, *key, "broken") for key in measured)


PROMISES = (
    Promise("streams that broke, all scenarios", "", 0, _broken),
    Promise("burst: chunks/s, none / ceiling", "x", 0.5, _ratio("burst", "none", "ceiling", "chunks_per_s"), at_least=True),
    Promise("burst: CPU per chunk, none / ceiling", "x", 2.5, _ratio("burst", "none", "ceiling", "cpu_us_per_chunk")),
    Promise("flow: chunks/s, durable / none", "x", 0.9, _ratio("flow", "durable", "none", "flow_chunks_per_s"), at_least=True),
    Promise("paced: chunk age p50, none above ceiling", "ms", 1, _above("paced", "none", "ceiling", "chunk_age_ms.p50")),
    Promise("paced: chunk age p99, none above ceiling", "ms", 5, _above("paced", "none", "ceiling", "chunk_age_ms.p99")),
    Promise("short: CPU per request, none", "ms", 1.5, _of("short", "none", "cpu_ms_per_req")),
    Promise("short: CPU per request, with keys and limits", "x", 1.15, _ratio("short", "guarded", "none", "cpu_ms_per_req")),
    Promise("ttft: p50, none above direct", "ms", 3, _above("ttft", "none", "direct", "ttft_ms.p50")),
    Promise("ttft: p50, durable above direct", "ms", 20, _above("ttft", "durable", "direct", "ttft_ms.p50")),
    Promise("many: memory per stream, none", "KB", 60, _memory_kb("many", "none")),
    Promise("many: chunk age p99, none", "ms", 100, _of("many", "none", "chunk_age_ms.p99")),
    Promise("viewers: chunk age p99", "ms", 500, _of("viewers", "sse", "chunk_age_ms.p99")),
    Promise("viewers: memory per viewer", "KB", 40, _memory_kb("viewers", "sse", "python")),
    Promise("viewers: connections to Redis, of which one reads", "", 3, _of("viewers", "sse", "redis_connections")),
    Promise("slow: chunk age p99, with / without", "x", 1.1, _ratio("slow", "with", "without", "chunk_age_ms.p99")),
    *(
        Promise(f"plans: {what}, {target}", unit, limit, _of("plans", target, path))
        for target in ("none", "durable")
        for what, unit, limit, path in (
            ("added to the slowest of 20 branches, p50", "ms", 5, "added_ms.p50"),
            ("a branch's result after its last token, p99", "ms", 10, "result_lag_ms.p99"),
        )
    ),
    Promise("plans: events in the history of 20 steps", "", 300, _of("plans", "durable", "history_events")),
    *(
        Promise(f"resume: to the last event, {door} {join}", "ms", 300, _of("resume", f"{door} {join}", "total_ms.p50"))
        for door in DOORS
        for join in ("said", "ended")
    ),
    *(
        Promise(f"{scenario}: CPU per event, {door} / sse", "x", 2, _ratio(scenario, door, "sse", "cpu_us_per_chunk"))
        for scenario in ("paced-doors", "burst-doors")
        for door in DOORS[1:]
    ),
)
