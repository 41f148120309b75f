"""Health, reflection, and the port that is listened on."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc import StatusCode, aio, ssl_channel_credentials
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.app import new_session_id
from gateway.keyring import key_ring
from gateway.observe.metrics import GatewayMetrics
from gateway.rpc import PORT, grpc_door
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.transports.tls import TlsUnusable
from tests.orchestrator.rpc.conftest import SETTINGS, Door, Open

SERVICES = ["headgate.events.EventService", "shannon.orchestrator.OrchestratorService", "shannon.orchestrator.StreamingService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("service", ["", *SERVICES])
async def test_health_is_told_to_anybody(door: Door, service: str) -> None:
    checks = health_pb2_grpc.HealthStub(door.channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await checks.Check(request, timeout=10)).status == SERVING
    watching = aiter(checks.Watch(request, timeout=10))
    assert (await anext(watching)).status == SERVING
    await door.listening.leave()
    assert (await anext(watching)).status == NOT_SERVING
    assert (await checks.Check(request, timeout=10)).status == NOT_SERVING


async def test_with_a_certificate_only_tls_is_spoken(open_door: Open, pair: tuple[Path, Path]) -> None:
    door = await open_door(server={"tls": {"cert": str(pair[0]), "key": str(pair[1])}})
    address = f"127.0.0.1:{door.listening.port}"
    request = health_pb2.HealthCheckRequest()
    async with aio.secure_channel(address, ssl_channel_credentials(pair[0].read_bytes())) as channel:
        assert (await health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)).status == SERVING
    with pytest.raises(aio.AioRpcError) as raised:
        await health_pb2_grpc.HealthStub(door.channel).Check(request, timeout=10)
    assert raised.value.code() is StatusCode.UNAVAILABLE


async def test_what_is_no_certificate_is_named_at_the_start(open_door: Open, pair: tuple[Path, Path]) -> None:
    with pytest.raises(TlsUnusable, match="are no certificate and its key"):
        await open_door(server={"tls": {"cert": str(pair[1]), "key": str(pair[1])}})


async def test_health_of_what_does_not_exist(door: Door) -> None:
    with pytest.raises(aio.AioRpcError) as raised:
        await health_pb2_grpc.HealthStub(door.channel).Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert raised.value.code() is StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_their_messages(door: Door) -> None:
    request = reflection_pb2.ServerReflectionRequest
    asked = [
        request(list_services=""),
        *(request(file_containing_symbol=service) for service in SERVICES),
        request(file_by_filename="protos/common.proto"),
    ]
    call = reflection_pb2_grpc.ServerReflectionStub(door.channel).ServerReflectionInfo(iter(asked), timeout=10)
    listed, *files = [answer async for answer in call]
    assert [service.name for service in listed.list_services_response.service] == sorted(
        [*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    )
    found = {
        FileDescriptorProto.FromString(file).name
        for answer in files
        for file in answer.file_descriptor_response.file_descriptor_proto
    }
    assert found >= {f"protos/{name}.proto" for name in ("common", "events", "orchestrator", "streaming")}


async def _port(door: Door, **settings: object) -> int | None:
    config = Settings.model_validate({**SETTINGS, "grpc": settings})
    drain, metrics = Drain(spread=lambda _: 0.0), GatewayMetrics()
    async with (
        key_ring(config, door.engine, drain) as keys,
        grpc_door(config, door.engine, keys, drain, metrics, new_session_id) as listening,
    ):
        return None if listening is None else listening.port


async def test_a_port_that_is_taken_is_refused_and_not_shared(door: Door) -> None:
    with pytest.raises(OSError, match=rf"127\.0\.0\.1:{door.listening.port}: something else"):
        await _port(door, port=door.listening.port)


async def test_without_a_port_it_is_the_usual_one_or_a_free_one(door: Door) -> None:
    assert await _port(door) is not None
    with socket.socket() as other:
        with suppress(OSError):  # taken by somebody else, which does as well
            other.bind(("127.0.0.1", PORT))
        assert await _port(door) != PORT


async def test_it_can_be_switched_off(door: Door) -> None:
    assert await _port(door, enabled=False) is None
