"""What `/metrics` says of the ways that calls take between upstreams."""

from __future__ import annotations

from gateway.observe.metrics import GatewayMetrics


def samples(metrics: GatewayMetrics) -> list[str]:
    """The lines about upstreams that are no comments, without the times at which counters began."""
    lines = metrics.text().decode().splitlines()
    return [line for line in lines if line.startswith("headgate_upstream_") and "_created" not in line]


def test_detours_are_counted_by_upstream() -> None:
    metrics = GatewayMetrics()
    metrics.fallback("local")
    metrics.hedge("local", "won")
    metrics.hedge("local", "won")
    metrics.hedge("local", "lost")
    for state in ("closed", "open", "half_open"):
        metrics.circuit("local", state)
    metrics.circuit("openai", "open")
    assert samples(metrics) == [
        'headgate_upstream_fallbacks_total{upstream="local"} 1.0',
        'headgate_upstream_hedges_total{outcome="won",upstream="local"} 2.0',
        'headgate_upstream_hedges_total{outcome="lost",upstream="local"} 1.0',
        'headgate_upstream_circuit{upstream="local"} 1.0',
        'headgate_upstream_circuit{upstream="openai"} 2.0',
    ]
