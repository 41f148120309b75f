"""What happens to every call, whichever method it is for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio

from orchestrator.engine import Engine, Listing
from orchestrator.errors import Unavailable
from protos import events_pb2, orchestrator_pb2, streaming_pb2
from protos.orchestrator_pb2 import ListTasksRequest, SubmitTaskRequest
from tests.orchestrator.rpc.conftest import ACME, ALICE, Door, Open

METHODS: list[MethodDescriptor] = [
    method
    for file in (streaming_pb2, orchestrator_pb2, events_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def ended(door: Door, path: str, *messages: bytes, metadata: Any = ALICE) -> aio.AioRpcError:
    """How a call with these bytes for messages ended, which must not be well."""
    call: Any = door.channel.stream_stream(path)(metadata=metadata, timeout=10)
    with pytest.raises(aio.AioRpcError) as raised:  # noqa: PT012
        for message in messages:
            await call.write(message)
        await call.done_writing()
        while await call.read() is not aio.EOF:
            pass
        raise AssertionError(await call.code())
    return raised.value


@pytest.mark.parametrize("method", METHODS, ids=path)
class TestEveryMethod:
    async def test_wants_a_key_before_it_reads_anything(self, door: Door, method: MethodDescriptor) -> None:
        """The call sends no message and does not say that it has none: it is refused all the same."""
        call: Any = door.channel.stream_stream(path(method))(timeout=10)
        assert await call.code() is StatusCode.UNAUTHENTICATED

    async def test_takes_no_garbage(self, door: Door, method: MethodDescriptor) -> None:
        assert (await ended(door, path(method), b"\xff\xff\xff")).code() is StatusCode.INVALID_ARGUMENT

    async def test_takes_no_more_than_the_limit(self, door: Door, method: MethodDescriptor) -> None:
        assert (await ended(door, path(method), bytes(5 * 1024 * 1024))).code() is StatusCode.RESOURCE_EXHAUSTED

    async def test_is_refused_while_the_server_drains(self, door: Door, method: MethodDescriptor) -> None:
        door.drain.begin()
        request = GetMessageClass(method.input_type)().SerializeToString()
        assert (await ended(door, path(method), request)).code() is StatusCode.UNAVAILABLE

    async def test_tells_nothing_of_its_insides(self, open_door: Open, method: MethodDescriptor) -> None:
        class Fault(Exception):
            pass

        class Broken:
            def __getattr__(self, name: str) -> Any:
                raise Fault("secret")

        door = await open_door(wrap=lambda _: Broken())
        request = GetMessageClass(method.input_type)()
        for field, value in (("workflow_id", "x"), ("query", "x"), ("model", "demo")):
            if field in method.input_type.fields_by_name:
                setattr(request, field, value)
        error = await ended(door, path(method), request.SerializeToString())
        assert error.code() is StatusCode.INTERNAL
        assert error.details() == "Something went wrong inside Headgate. The request id identifies it in the logs."
        assert b"headgate_internal_errors_total 1.0" in door.metrics.text()


@pytest.mark.parametrize("method", [method for method in METHODS if not method.client_streaming], ids=path)
async def test_a_call_without_a_message(door: Door, method: MethodDescriptor) -> None:
    assert (await ended(door, path(method))).code() is StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method(door: Door) -> None:
    assert (await ended(door, "/shannon.orchestrator.OrchestratorService/Nope")).code() is StatusCode.UNIMPLEMENTED


async def test_errors_say_when_to_ask_again(open_door: Open) -> None:
    class Away:
        async def list(self, *_: Any, **__: Any) -> Listing:
            raise Unavailable("Away: ü\u2028\n" + "x" * 10_000, retry_after_s=2.5)

    door = await open_door(wrap=lambda _: Away())
    with pytest.raises(aio.AioRpcError) as raised:
        await door.tasks.ListTasks(ListTasksRequest(), metadata=ALICE)
    error = raised.value
    assert error.code() is StatusCode.UNAVAILABLE
    assert error.details() == "Away: ü\u2028\n" + "x" * 991
    assert dict(error.trailing_metadata()) == {"x-error-code": "backend_unavailable", "grpc-retry-pushback-ms": "2500"}


async def test_no_more_calls_than_the_limit(open_door: Open) -> None:
    door = await open_door(grpc={"port": 0, "max_calls": 2})
    run_id, _ = await door.open()
    calls = [door.stream(run_id) for _ in range(2)]
    for call in calls:
        await call.initial_metadata()
    with pytest.raises(aio.AioRpcError) as raised:
        await door.tasks.ListTasks(ListTasksRequest(), metadata=ALICE)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


async def test_what_a_unary_call_asks_for_is_done_although_its_caller_leaves(open_door: Open) -> None:
    """A submission that is broken off halfway is a run that exists and that nobody executes."""
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def slow(engine: Engine) -> Any:
        class Slow:
            async def submit(self, *asked: Any) -> Any:
                begun.set()
                await go.wait()
                run = await engine.submit(*asked)
                done.set()
                return run

            def __getattr__(self, name: str) -> Any:
                return getattr(engine, name)

        return Slow()

    door = await open_door(wrap=slow)
    call = door.tasks.SubmitTask(SubmitTaskRequest(query="/script\nsay 1 words", model="demo"), metadata=ALICE)
    async with asyncio.timeout(10):
        await begun.wait()
        call.cancel()
        go.set()
        await done.wait()
    assert (await door.engine.list(ACME)).total == 1


async def test_calls_are_counted_by_method_and_status(door: Door) -> None:
    await door.tasks.ListTasks(ListTasksRequest(), metadata=ALICE)
    with pytest.raises(aio.AioRpcError):
        await door.tasks.ListTasks(ListTasksRequest())
    text = door.metrics.text().decode()
    for code in ("OK", "UNAUTHENTICATED"):
        labels = f'{{code="{code}",method="shannon.orchestrator.OrchestratorService/ListTasks"}}'
        assert f"headgate_grpc_calls_total{labels} 1.0" in text


class TestFloods:
    async def test_hundreds_of_calls_that_are_opened_and_dropped_leave_nothing(self, door: Door) -> None:
        run_id, _ = await door.open()
        reader = door.stream(run_id)
        await reader.initial_metadata()
        for _ in range(5):
            calls = [door.stream(run_id) for _ in range(100)]
            for call in calls[::2]:
                call.cancel()
            await asyncio.gather(*(call.initial_metadata() for call in calls[1::2]))
            for call in calls[1::2]:
                call.cancel()
        reader.cancel()
        async with asyncio.timeout(10):
            while b"headgate_active_streams 0.0" not in door.metrics.text():
                await door.tasks.ListTasks(ListTasksRequest(), metadata=ALICE)

    @pytest.mark.parametrize(
        "sent",
        [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 65_536,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + b"\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong" * 10_000,
        ],
        ids=["HTTP/1.1", "garbage", "pings"],
    )
    async def test_a_connection_that_speaks_no_grpc_is_closed_and_others_go_on(self, door: Door, sent: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.listening.port)
        writer.write(sent)
        async with asyncio.timeout(10):
            with suppress(ConnectionResetError):
                while await reader.read(65_536):
                    pass
        writer.close()
        await door.tasks.ListTasks(ListTasksRequest(), metadata=ALICE, timeout=10)
