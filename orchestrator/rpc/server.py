"""The gRPC server: three services behind one edge, health checking and reflection, on one port.

Health and reflection answer anybody: the one says nothing about tenants, the other is this repository's `.proto` files.
"""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from google.protobuf.descriptor import ServiceDescriptor
from grpc import ServerCredentials, aio, ssl_server_credentials
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from orchestrator.engine import Engine
from orchestrator.rpc.access import Authenticator, Drain, Observer, TaskRules
from orchestrator.rpc.edge import Edge
from orchestrator.rpc.events import EventService
from orchestrator.rpc.orchestrator_service import OrchestratorService
from orchestrator.rpc.streaming import StreamingService
from protos import events_pb2, orchestrator_pb2, streaming_pb2

_STOP_S = 1.0


class Pair(msgspec.Struct, frozen=True):
    """A certificate, the whole chain, and its key, both PEM. It never prints."""

    cert: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair(…)"

    def credentials(self) -> ServerCredentials:
        return ssl_server_credentials([(self.key, self.cert)])


class Address(msgspec.Struct, frozen=True):
    """Where to listen, and how much to take.

    `or_another`: if the port is taken, a free one will do. `reuse_port`: other processes serve the same port.
    `tls`: of TLS 1.2 and 1.3; without it, everything is sent as it is.
    """

    host: str
    port: int
    or_another: bool = False
    max_message_bytes: int = 4 * 1024 * 1024
    max_calls: int = 10_000
    stall_timeout_s: float = 60.0
    reuse_port: bool = False
    tls: Pair | None = None


class Listening:
    """An open gRPC door."""

    def __init__(self, port: int, checks: health.aio.HealthServicer) -> None:
        self.port = port
        self._checks = checks

    async def leave(self) -> None:
        """Tell those who check the health of this server to send new calls elsewhere."""
        await self._checks.enter_graceful_shutdown()


@asynccontextmanager
async def listening(
    address: Address, engine: Engine, *, authenticate: Authenticator, rules: TaskRules, drain: Drain, observer: Observer
) -> AsyncIterator[Listening]:
    """Serve inside. Raises OSError when the port cannot be had. On leaving, calls that are still open are cancelled."""
    edge = Edge(authenticate, drain, observer, stall_timeout_s=address.stall_timeout_s)
    services: dict[ServiceDescriptor, object] = {
        streaming_pb2.DESCRIPTOR.services_by_name["StreamingService"]: StreamingService(engine, drain, observer),
        orchestrator_pb2.DESCRIPTOR.services_by_name["OrchestratorService"]: OrchestratorService(engine, rules, time.time),
        events_pb2.DESCRIPTOR.services_by_name["EventService"]: EventService(engine, drain),
    }
    server = aio.server(options=_options(address), maximum_concurrent_rpcs=address.max_calls)
    server.add_generic_rpc_handlers([edge.handlers(service, servicer) for service, servicer in services.items()])
    names = [service.full_name for service in services]
    checks = health.aio.HealthServicer()
    for name in names:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    try:
        port = _bind(server, address)
        await server.start()
        yield Listening(port, checks)
    finally:
        await server.stop(_STOP_S)
        await edge.close()


def _bind(server: aio.Server, address: Address) -> int:
    host = address.host.strip("[]")
    where = f"[{host}]" if ":" in host else host
    port = 0 if address.or_another and not _free(host, address.port) else address.port
    try:
        if address.tls is not None:
            return server.add_secure_port(f"{where}:{port}", address.tls.credentials())
        return server.add_insecure_port(f"{where}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen on {where}:{port}: something else may be listening there already") from error


def _free(host: str, port: int) -> bool:
    """Whether the port can be had now. gRPC would find out by itself, and write to standard error that it has failed."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return True
    except OSError:
        return False


def _options(address: Address) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", address.max_message_bytes),
        # By default two servers that are given one port share it, and each gets some of the other's calls.
        ("grpc.so_reuseport", int(address.reuse_port)),
        # A peer that is gone without a word is noticed within 40 s, as on a WebSocket.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Clients may look for us as often as every ten seconds; those that ping faster are sent away.
        ("grpc.http2.min_ping_recv_interval_without_data_ms", 10_000),
    ]
