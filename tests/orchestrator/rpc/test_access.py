"""Every method, called as somebody who may not: without its scope, and as another tenant. One that is added is called too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio

from orchestrator.engine import Submission
from orchestrator.rpc.access import RULES
from orchestrator.rpc.edge import Edge
from orchestrator.runs import EVERYDAY, Scope
from protos import events_pb2, orchestrator_pb2, streaming_pb2
from tests.orchestrator.rpc.conftest import ACME, Door, Open

SERVICES = [
    service for file in (events_pb2, orchestrator_pb2, streaming_pb2) for service in file.DESCRIPTOR.services_by_name.values()
]
MISSING = "task-" + "0" * 32


def methods() -> Iterable[tuple[str, MethodDescriptor]]:
    for service in SERVICES:
        for method in service.methods:
            yield f"{service.full_name}/{method.name}", method


def key_for(scopes: Iterable[Scope]) -> str:
    return "sk-" + "-".join(sorted(scope.name.lower() for scope in scopes))


@pytest.fixture
async def door(open_door: Open) -> Door:
    sets = {frozenset({scope}) for scope in Scope} | {EVERYDAY - {scope} for scope in EVERYDAY} | {frozenset[Scope]()}
    keys = [
        {"key": key_for(scopes), "name": f"acme-{number}", "tenant": "acme", "scopes": sorted(scopes)}
        for number, scopes in enumerate(sets)
    ]
    keys += [{"key": "sk-b", "name": "bob", "tenant": "other", "scopes": ["admin"]}]
    return await open_door(auth={"mode": "keys", "keys": keys})


async def call(door: Door, name: str, method: MethodDescriptor, key: str, run_id: str = MISSING) -> tuple[StatusCode, str]:
    """How the call ended. Its message names the run wherever a message of that kind can."""
    kind = GetMessageClass(method.input_type)
    fields = {field: run_id for field in ("task_id", "workflow_id") if field in method.input_type.fields_by_name}
    if "approval_id" in method.input_type.fields_by_name:
        fields["approval_id"] = "a"
    rpc = door.channel.stream_stream(f"/{name}", request_serializer=lambda message: message.SerializeToString())
    stream: Any = rpc(iter([kind(**fields)]), metadata=[("x-api-key", key)], timeout=10)
    try:
        said = [message async for message in stream]
    except aio.AioRpcError as error:
        return error.code(), error.details() or ""
    if method.client_streaming:
        ack = events_pb2.PublishAck.FromString(said[0])
        return (StatusCode.NOT_FOUND if ack.error.code == "run_not_found" else StatusCode.OK), ack.error.message
    return StatusCode.OK, ""


def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    assert {name for name, _ in methods()} == set(RULES)


def test_a_method_without_a_rule_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    service = streaming_pb2.DESCRIPTOR.services_by_name["StreamingService"]
    monkeypatch.delitem(RULES, f"{service.full_name}/StreamTaskExecution")  # type: ignore[arg-type]
    edge = Edge(*[None] * 3, stall_timeout_s=1)  # type: ignore[arg-type]
    servicer = type("Servicer", (), {method.name: lambda *_: None for method in service.methods})()
    with pytest.raises(KeyError):
        edge.handlers(service, servicer)


async def test_without_its_scope_a_method_is_denied_and_says_what_it_takes(door: Door) -> None:
    for name, method in methods():
        scope = RULES[name]
        for key in (key_for(EVERYDAY - {scope}), key_for(())):
            code, details = await call(door, name, method, key)
            assert (code, f"'{scope}'" in details) == (StatusCode.PERMISSION_DENIED, True), (name, details)


async def test_its_scope_alone_is_enough_and_so_is_admin(door: Door) -> None:
    for name, method in methods():
        for key in (key_for({RULES[name]}), key_for({Scope.ADMIN})):
            code, details = await call(door, name, method, key)
            assert code in (StatusCode.OK, StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT), (name, code, details)


async def test_another_tenants_run_is_a_missing_one(door: Door) -> None:
    request = {"messages": [{"role": "user", "content": "/script\nhang"}]}
    run = await door.engine.submit(ACME, Submission("demo", request))
    driven = 0
    for name, method in methods():
        if not {"task_id", "workflow_id"} & set(method.input_type.fields_by_name):
            continue
        answers = [await call(door, name, method, "sk-b", run_id) for run_id in (run.id, MISSING)]
        assert answers[0] == answers[1], name
        assert answers[0][0] in (StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT), (name, answers[0])
        driven += 1
    assert driven >= 7
    assert (await door.engine.get(ACME, run.id)).state.value == "RUNNING", "nobody but its tenant touched it"
    await door.engine.cancel(ACME, run.id)
