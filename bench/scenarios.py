"""What is measured, and what is promised about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Measured = Mapping[tuple[str, str], Mapping[str, Any]]
"""By scenario and target: the report of `bench.load` with the median of the rounds for each number."""


@dataclass(frozen=True)
class Scenario:
    """One kind of load, put on each target in turn. `quick` is the number of requests in a smoke run."""

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


SCENARIOS = (
    Scenario("burst", "500 chunks as fast as they are read", "mock-500-0", 32, 256, 64, ("ceiling", "none", "durable")),
    Scenario(
        "flow",
        "as burst, after everybody has the first token",
        "mock-4000-0-3000",
        32,
        32,
        8,
        ("ceiling", "none", "durable"),
    ),
    Scenario("paced", "100 chunks per second and stream", "mock-500-10", 20, 20, 5, ("ceiling", "none", "durable")),
    Scenario("short", "requests of 5 chunks", "mock-5-0", 8, 2000, 200, ("ceiling", "none", "durable")),
    Scenario("ttft", "one request at a time", "mock-5-0", 1, 200, 30, ("direct", "ceiling", "none", "durable")),
    Scenario("many", "2 chunks per second and stream", "mock-20-500", 1000, 1000, 50, ("ceiling", "none"), ramp_s=0.004),
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


def _memory_per_stream(measured: Measured) -> float:
    grown_mb = _of("many", "none", "rss_peak_mb")(measured) - _of("many", "none", "rss_mb")(measured)
    return grown_mb * 1000 / _of("many", "none", "c")(measured)


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
    Promise("ttft: p50, none above direct", "ms", 3, _above("ttft", "none", "direct", "ttft_ms.p50")),
    Promise("ttft: p50, durable above direct", "ms", 20, _above("ttft", "durable", "direct", "ttft_ms.p50")),
    Promise("many: memory per stream, none", "KB", 60, _memory_per_stream),
    Promise("many: chunk age p99, none", "ms", 100, _of("many", "none", "chunk_age_ms.p99")),
)
