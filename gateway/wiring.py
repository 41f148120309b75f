"""From the settings of a process to what its orchestrator needs to know."""

from __future__ import annotations

from pydantic import SecretStr

from gateway.settings import Settings, TemporalAddress
from orchestrator import assembly
from orchestrator.workflows import worker


def configuration(settings: Settings) -> assembly.Configuration:
    """Secrets leave their wrapping here, on the way to whoever connects with them."""
    backends = settings.backends
    return assembly.Configuration(
        data_dir=settings.data_dir,
        redis=_address(backends.redis),
        temporal=_temporal(backends.temporal),
        postgres=_address(backends.postgres),
        upstreams=settings.upstreams,
        models=settings.models,
        tools=settings.tools,
        retention_s=settings.log.retention_hours * 3600,
        max_events_per_run=settings.log.max_events_per_run,
        ring_bytes=int(settings.log.ring_bytes),
        writer_buffer_bytes=int(settings.log.writer_buffer_bytes),
        heartbeat_s=settings.runs.heartbeat_s,
        janitor_s=settings.runs.janitor_s,
        drain_s=settings.server.drain_s,
        limits=settings.limits.policy(),
    )


def _address(backend: SecretStr | str) -> str | None:
    return backend.get_secret_value() if isinstance(backend, SecretStr) else None


def _temporal(backend: TemporalAddress | str) -> worker.TemporalAddress | None:
    if isinstance(backend, str):
        return None
    key = None if backend.api_key is None else backend.api_key.get_secret_value()
    return worker.TemporalAddress(backend.address, backend.namespace, backend.tls, key)
