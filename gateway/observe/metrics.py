"""The numbers of one process, in Prometheus's words. Implements `orchestrator.metrics.Metrics` and adds what the doors see.

Each instance owns its registry, so two in one process (tests do that) never mix. Labels are route patterns, status codes, names
of the configuration and words of our own closed sets: nothing a client sends becomes a label.
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from orchestrator.metrics import CircuitState, HedgeOutcome, Limited
from orchestrator.runs import RunState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FAST_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SLOW_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class GatewayMetrics:
    """All metrics of a process. Methods count; `text` is what `/metrics` answers."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "headgate_http_requests_total", "HTTP requests by route and status.", ["method", "route", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "headgate_http_request_seconds",
            "Time to the end of a response, streams included.",
            ["route"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._calls = Counter(
            "headgate_grpc_calls_total", "gRPC calls by method and status.", ["method", "code"], registry=registry
        )
        self._call_seconds = Histogram(
            "headgate_grpc_call_seconds",
            "Time to the end of a call, streams included.",
            ["method"],
            buckets=_SLOW_S,
            registry=registry,
        )
        self._internal_errors = Counter("headgate_internal_errors_total", "Errors that are our own fault.", registry=registry)
        self._streams = Gauge("headgate_active_streams", "Streams that are open now.", registry=registry)
        self._stalled = Counter(
            "headgate_stalled_clients_total", "Streams aborted because their client did not read.", registry=registry
        )
        self._departures = Counter("headgate_client_departures_total", "Requesters who left before the end.", registry=registry)
        self._chunk_age = Histogram(
            "headgate_chunk_age_seconds",
            "From append to write, of the oldest event in a write.",
            buckets=_FAST_S,
            registry=registry,
        )
        self._active_runs = Gauge("headgate_active_runs", "Runs started here less runs ended here.", registry=registry)
        self._runs_started = Counter("headgate_runs_started_total", "Runs started here.", registry=registry)
        self._runs = Counter("headgate_runs_total", "Runs that ended here, by final state.", ["state"], registry=registry)
        self._run_seconds = Histogram("headgate_run_seconds", "From creation to ending.", buckets=_SLOW_S, registry=registry)
        self._first_token = Histogram(
            "headgate_first_token_seconds", "From a run's creation to its first token.", buckets=_SLOW_S, registry=registry
        )
        self._append_events = Histogram("headgate_append_events", "Events in one append.", buckets=_SIZES, registry=registry)
        self._append_seconds = Histogram("headgate_append_seconds", "Duration of one append.", buckets=_FAST_S, registry=registry)
        self._fenced = Counter("headgate_fenced_appends_total", "Appends refused: a later attempt took over.", registry=registry)
        self._gaps = Counter("headgate_gaps_total", "Readers told that events are missing.", registry=registry)
        self._upstream_errors = Counter(
            "headgate_upstream_errors_total", "Failed upstream calls, by class.", ["kind"], registry=registry
        )
        self._upstream_notes = Counter(
            "headgate_upstream_notes_total", "Oddities of upstreams that did not stop the answer.", ["what"], registry=registry
        )
        self._fallbacks = Counter(
            "headgate_upstream_fallbacks_total",
            "Calls that went on to another upstream because this one failed.",
            ["upstream"],
            registry=registry,
        )
        self._hedges = Counter(
            "headgate_upstream_hedges_total",
            "Calls asked twice because this upstream was silent; won: the second upstream spoke first.",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._circuits = Gauge(
            "headgate_upstream_circuit",
            "0: closed, calls go through. 1: half open, one finds out. 2: open, none does.",
            ["upstream"],
            registry=registry,
        )
        self._tool_seconds = Histogram(
            "headgate_tool_call_seconds", "Calls of agents' tools, by outcome.", ["outcome"], buckets=_SLOW_S, registry=registry
        )
        self._takeovers = Counter("headgate_takeovers_total", "Attempts that continued another's work.", registry=registry)
        self._cache = Counter("headgate_cache_total", "Requests to models with a cache.", ["found"], registry=registry)
        self._cache_failures = Counter(
            "headgate_cache_failures_total", "Questions that could not be compared or remembered.", ["why"], registry=registry
        )
        self._limited = Counter(
            "headgate_limited_total",
            "Requests and readers that a limit refused; or, as limits could not be checked, refused or let in uncounted.",
            ["by"],
            registry=registry,
        )
        self._backlog = Gauge("headgate_archive_backlog", "Ended runs that wait to be archived.", registry=registry)
        self._archived = Counter("headgate_archived_runs_total", "Runs copied to the archive.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    # What the doors see.

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """`method` and `route` are the matched route's own, never the request's text."""
        key = (method, route, status)
        children = self._request_children.get(key)
        if children is None:
            children = self._requests.labels(method, route, str(status)), self._request_seconds.labels(route)
            self._request_children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def call(self, method: str, code: str, seconds: float) -> None:
        """`method` is one that exists, never the call's text."""
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)

    def internal_error(self) -> None:
        self._internal_errors.inc()

    def stream_opened(self) -> None:
        self._streams.inc()

    def stream_closed(self) -> None:
        self._streams.dec()

    def stalled(self) -> None:
        self._stalled.inc()

    def departure(self) -> None:
        self._departures.inc()

    def chunk_age(self, seconds: float) -> None:
        self._chunk_age.observe(seconds)

    # orchestrator.metrics.Metrics

    def run_started(self) -> None:
        self._runs_started.inc()
        self._active_runs.inc()

    def run_ended(self, state: RunState, seconds: float) -> None:
        self._runs.labels(state.value.lower()).inc()
        self._run_seconds.observe(seconds)
        self._active_runs.dec()

    def first_token(self, seconds: float) -> None:
        self._first_token.observe(seconds)

    def append(self, events: int, seconds: float) -> None:
        self._append_events.observe(events)
        self._append_seconds.observe(seconds)

    def fenced(self) -> None:
        self._fenced.inc()

    def gap(self) -> None:
        self._gaps.inc()

    def upstream_error(self, kind: str) -> None:
        self._upstream_errors.labels(kind).inc()

    def upstream_note(self, what: str) -> None:
        self._upstream_notes.labels(what).inc()

    def fallback(self, upstream: str) -> None:
        self._fallbacks.labels(upstream).inc()

    def hedge(self, upstream: str, outcome: HedgeOutcome) -> None:
        self._hedges.labels(upstream, outcome).inc()

    def circuit(self, upstream: str, state: CircuitState) -> None:
        self._circuits.labels(upstream).set({"closed": 0, "half_open": 1, "open": 2}[state])

    def tool_called(self, outcome: str, seconds: float) -> None:
        self._tool_seconds.labels(outcome).observe(seconds)

    def takeover(self) -> None:
        self._takeovers.inc()

    def cached(self, found: Literal["exact", "semantic", "miss"]) -> None:
        self._cache.labels(found).inc()

    def limited(self, by: Limited) -> None:
        self._limited.labels(by).inc()

    def cache_failed(self, why: Literal["slow", "upstream", "log", "store"]) -> None:
        self._cache_failures.labels(why).inc()

    def archive_backlog(self, runs: int) -> None:
        self._backlog.set(runs)

    def archived(self, runs: int) -> None:
        self._archived.inc(runs)
