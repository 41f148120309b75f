"""Many doors to one run at once: followed live through all of them, controlled at one and seen to be at the others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from openai import OpenAI

from compat_tests.doors import DOORS, TASKS, Door, EventStream, Refused, Server, envelope, refuse_rpc
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import CHAT, TIMEOUT_S, ask, headers_of, script, take_frames
from compat_tests.watch import everywhere, reading, shown, watching
from protos import orchestrator_pb2 as pb
from protos.streaming_pb2 import TaskUpdate

PAUSABLE = script('say "a"', "once hang", 'say " b"')
"""Hangs until it is paused and resumed, unless that takes longer than its upstream may be silent."""


# Followed


@promise("doors.at-once", "grpc.reflection", "event.one-ending", "command.watches")
@pytest.mark.parametrize("model_name", ["patient", "patient-none"])
def test_a_run_of_the_openai_sdk_is_followed_by_everybody_at_once(
    client: OpenAI, here: Server, there: Server, model_name: str
) -> None:
    """P5, P13: bytes as curl gets them, a WebSocket, gRPC by reflection alone, and the `headgate` command.

    The run stands still until all of them follow it, so that each gets the rest live.
    """
    stream = client.chat.completions.create(
        model=model_name,
        messages=[{"role": "user", "content": PAUSABLE}],
        stream=True,
        extra_headers={"X-Headgate-Stream-Ids": "true"},
    )
    run = stream.response.headers["x-workflow-id"]
    with everywhere(run, here, there) as watches, watching() as start:
        command, reflecting = start(lambda: commanded(here, run)), start(lambda: reflected(there, run))
        followers = [*watches.values(), command, reflecting]
        for watch in followers:
            watch.until("LLM_PARTIAL")
        DOORS["grpc"].ask(there, run, "pause", "everybody is here")
        for watch in followers:
            watch.until("WORKFLOW_PAUSED")
        DOORS["websocket"].ask(here, run, "resume", "go on")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        log = here.log(run)
        for (door, _), watch in watches.items():
            assert watch.end() == shown(door, log)
        assert reflecting.end() == log
        assert command.end()[:-1] == log[:-1]
        assert command.events[-1]["stream_id"] == log[-1]["stream_id"]  # the event stream's `done` has no time
    assert text == "a b" == log[-2]["payload"]["result"]
    assert [event["type"] for event in log[-2:]] == ["WORKFLOW_COMPLETED", "STREAM_END"]


def commanded(server: Server, run: str) -> Iterator[dict[str, Any]]:
    """What `headgate stream --json` prints."""
    command = [sys.executable, "-m", "headgate", "stream", run, "--url", server.url, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    assert process.returncode == 0


def reflected(server: Server, run: str) -> Iterator[dict[str, Any]]:
    """The updates that a client gets who has no `.proto` file and asks the server for its words."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(server.channel))
    method = pool.FindServiceByName("shannon.orchestrator.StreamingService").FindMethodByName("StreamTaskExecution")
    request = GetMessageClass(method.input_type)(workflow_id=run)
    call: Any = server.channel.unary_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    for update in call(request, metadata=server.metadata, timeout=TIMEOUT_S):
        told = MessageToDict(update, preserving_proto_field_name=True)
        event = envelope(TaskUpdate.FromString(update.SerializeToString()))
        assert (told["type"], told["seq"], told.get("message")) == (event["type"], str(event["seq"]), event.get("message"))
        assert told.get("payload") == event.get("payload")
        yield event


# Controlled


@promise("doors.control", "rest.pause", "rest.control-state", "grpc.control", "ws.control")
@pytest.mark.parametrize(("pauser", "resumer"), [("sse", "websocket"), ("websocket", "grpc"), ("grpc", "sse")])
@pytest.mark.parametrize("model_name", ["demo", "demo-none"])
def test_a_pause_at_one_door_is_seen_at_all_others(
    here: Server, there: Server, model_name: str, pauser: str, resumer: str
) -> None:
    """native.md §2, §4-6: asked for at a replica, resumed at another door; PAUSED only while it stands still."""
    with here.raw.open("POST", CHAT, ask(model_name, PAUSABLE, stream=True)) as chat:
        run = headers_of(chat)["x-workflow-id"]
        with everywhere(run, here, there) as watches:
            take_frames(chat, 2)
            assert_refused(DOORS[resumer], here, run, "resume", "run_not_paused")
            DOORS[pauser].ask(there, run, "pause", "a while")
            for watch in watches.values():
                assert watch.until("WORKFLOW_PAUSING")["payload"]["reason"] == "a while"
                watch.until("WORKFLOW_PAUSED")
            assert_paused(here, there, run, by="alice")
            assert_refused(DOORS[pauser], here, run, "pause", "run_paused")
            DOORS[resumer].ask(here, run, "resume", "enough")
            for (door, _), watch in watches.items():
                assert watch.end() == shown(door, here.log(run))
        assert chat.read().endswith(b"data: [DONE]\n\n")
    types = [event["type"] for event in here.log(run) if event["type"].startswith("WORKFLOW_")]
    assert types == ["WORKFLOW_STARTED", "WORKFLOW_PAUSING", "WORKFLOW_PAUSED", "WORKFLOW_RESUMED", "WORKFLOW_COMPLETED"]
    assert control_state(there, run) == {**NOTHING_ASKED}
    assert_refused(DOORS[pauser], here, run, "pause", "run_ended")
    assert_refused(DOORS[resumer], here, run, "resume", "run_ended")


NOTHING_ASKED = {
    "is_paused": False,
    "is_cancelled": False,
    "paused_at": None,
    "pause_reason": None,
    "paused_by": None,
    "cancel_reason": None,
    "cancelled_by": None,
}


def assert_paused(here: Server, there: Server, run: str, by: str) -> None:
    """At every door that can be asked."""
    assert here.task(run)["status"] == "PAUSED"
    status = there.tasks.GetTaskStatus(pb.GetTaskStatusRequest(task_id=run), metadata=there.metadata, timeout=TIMEOUT_S)
    assert status.status == pb.TASK_STATUS_PAUSED
    state = control_state(here, run)
    paused = next(event for event in here.log(run) if event["type"] == "WORKFLOW_PAUSED")
    assert state == {
        **NOTHING_ASKED,
        "is_paused": True,
        "paused_at": paused["timestamp"],
        "pause_reason": "a while",
        "paused_by": by,
    }
    assert state == control_state(there, run)


def control_state(server: Server, run: str) -> dict[str, Any]:
    """As REST and gRPC say it, which must be the same."""
    rest = server.raw.send("GET", f"{TASKS}/{run}/control-state").json
    rpc = server.tasks.GetControlState(pb.GetControlStateRequest(task_id=run), metadata=server.metadata, timeout=TIMEOUT_S)
    assert {name: value or None for name, value in rest.items()} == {name: getattr(rpc, name) or None for name in rest}
    return dict(rest)


def assert_refused(door: Door, server: Server, run: str, op: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        door.ask(server, run, op, "no")
    assert (refused.value.status, refused.value.code) == (409, code)


@promise("doors.control", "rest.cancel", "grpc.control", "ws.control", "event.one-ending")
@pytest.mark.parametrize("canceller", ["sse", "websocket", "grpc", "chat"])
def test_a_cancel_at_one_door_ends_the_run_at_all_others(
    here: Server, there: Server, mark: str, wire_model: str, model_server: ModelServer, canceller: str
) -> None:
    """native.md §2, §4-6, P13, P14: the upstream's socket closes, and everybody is told the same ending; twice is once."""
    prompt = script('say "a"', "hang", mark)
    run = here.submit(wire_model, prompt)
    with everywhere(run, here, there) as watches:
        for watch in watches.values():
            watch.until("LLM_PARTIAL")
        cancel(canceller, there, run)
        # A socket on a run that has ended closes, and may do so before it has heard the second wish.
        with suppress(Refused) if canceller == "websocket" else nullcontext():
            cancel(canceller, there, run)
        assert model_server.ending(prompt, 2.0) == "cancelled"
        for (door, _), watch in watches.items():
            assert watch.end() == shown(door, here.log(run))
    log = here.log(run)
    types = [event["type"] for event in log]
    assert [kind for kind in types if kind.startswith("WORKFLOW_")] == [
        "WORKFLOW_STARTED",
        "WORKFLOW_CANCELLING",
        "WORKFLOW_CANCELLED",
    ]
    reason = None if canceller == "chat" else "no longer needed"
    assert (log[-2]["payload"].get("reason"), log[-2]["payload"]["by"]) == (reason, "alice")
    task = here.task(run)
    assert (task["status"], task["result"]) == ("CANCELLED", None)
    assert control_state(here, run) == {**NOTHING_ASKED, "is_cancelled": True, "cancel_reason": reason, "cancelled_by": "alice"}
    assert here.raw.retrieve(run).error["code"] == "run_cancelled"


def cancel(canceller: str, server: Server, run: str) -> None:
    if canceller == "chat":
        assert server.raw.cancel(run).status == 200
    else:
        DOORS[canceller].ask(server, run, "cancel", "no longer needed")


@promise("rest.cancel", "grpc.control")
def test_cancelling_what_has_ended_otherwise_says_how_it_ended(here: Server) -> None:
    """native.md §5: 409."""
    run = here.submit("demo-none", script('say "a"'))
    assert list(reading(EventStream(), here, run))
    answer = here.raw.send("POST", f"{TASKS}/{run}/cancel")
    assert (answer.status, answer.error["code"]) == (409, "run_ended")
    assert "COMPLETED" in answer.error["message"].upper()
    with pytest.raises(grpc.RpcError) as error:
        here.tasks.CancelTask(pb.CancelTaskRequest(task_id=run), timeout=TIMEOUT_S)
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(Refused) as refused:
        refuse_rpc(error.value)
    assert refused.value.code == "run_ended"
