"""Somebody who writes into a run from outside, as users' own workers do."""

from __future__ import annotations

import json
from typing import Any

import grpc

from protos.events_pb2 import PublishEvent, PublishRequest
from protos.events_pb2_grpc import EventServiceStub

WAIT_S = 10.0


def publish(grpc_port: int, run_id: str, type: str, payload: dict[str, Any], message: str = "", writer: str = "worker") -> None:
    """Append one event. When this returns, it is in the run's log."""
    event = PublishEvent(type=type, agent_id=writer, message=message, payload_json=json.dumps(payload).encode())
    request = PublishRequest(workflow_id=run_id, writer=writer, attempt=1, producer_seq=1, events=[event])
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        acks = EventServiceStub(channel).PublishEvents(iter([request]), timeout=WAIT_S)  # type: ignore[no-untyped-call]
        for ack in acks:
            assert not ack.HasField("error"), ack.error
