"""Building the upstreams of a configuration, all on one session."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import aiohttp

from orchestrator.metrics import Metrics
from orchestrator.upstreams.config import OpenAIConfig, ScriptedConfig, UpstreamConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import Upstream


def build(
    configs: Mapping[str, UpstreamConfig], session: aiohttp.ClientSession, clock: Callable[[], float] = time.time
) -> dict[str, Upstream]:
    """The upstreams by name, in the order of the configuration."""
    upstreams: dict[str, Upstream] = {}
    for name, config in configs.items():
        match config:
            case ScriptedConfig():
                upstreams[name] = ScriptedUpstream(name, config, clock=clock)
            case OpenAIConfig():
                upstreams[name] = OpenAIUpstream(name, config, session, clock)
    return upstreams


def route(
    configs: Mapping[str, UpstreamConfig],
    upstreams: Mapping[str, Upstream],
    metrics: Metrics,
    clock: Callable[[], float] = time.time,
) -> Router:
    """A router over these upstreams, each with the retries and the breaker that its configuration says."""
    retries = {name: config.retries for name, config in configs.items()}
    breakers = {name: config.breaker for name, config in configs.items()}
    return Router(upstreams, retries, breakers, metrics=metrics, clock=clock)
