"""Counting the streams that are open, and those that were cut off because their client did not read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.observe.metrics import GatewayMetrics
from gateway.transports.sink import ClientStalled


@contextmanager
def counted(metrics: GatewayMetrics) -> Iterator[None]:
    """Around a stream."""
    metrics.stream_opened()
    try:
        yield
    except ClientStalled:
        metrics.stalled()
        raise
    finally:
        metrics.stream_closed()
