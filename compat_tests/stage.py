"""Runs whose every word a test decides, from outside: the model hangs, and somebody else publishes the events."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compat_tests.doors import Event, EventStream, Server
from compat_tests.raw import TIMEOUT_S, script
from protos import events_pb2 as pb

_EVENTS = EventStream()


class Stage:
    """A run that stands still until it is told to `finish`, or is cancelled."""

    def __init__(self, server: Server, **fields: Any) -> None:
        self.server = server
        # A pause and a resume bring it out of its silence.
        self.run = server.submit("wire-none", script("once hang", 'say "done"', f"# {uuid.uuid4().hex}"), **fields)
        self._published = 0

    def say(self, type: str, message: str = "", payload: Any = None, agent_id: str = "") -> pb.PublishAck:
        """Publish one event. When this returns, it is in the log."""
        self._published += 1
        event = pb.PublishEvent(type=type, agent_id=agent_id, message=message)
        if payload is not None:
            event.payload_json = json.dumps(payload).encode()
        ack = publish(self.server, workflow_id=self.run, writer="stage", attempt=1, producer_seq=self._published, events=[event])
        assert not ack.HasField("error"), ack.error
        return ack

    def ask_approval(self, approval_id: str) -> None:
        self.say("APPROVAL_REQUESTED", payload={"approval_id": approval_id, "proposed_action": "pay", "reason": "it is due"})

    def log(self) -> list[Event]:
        return self.server.log(self.run)

    def finish(self) -> None:
        for op in ("pause", "resume"):
            _EVENTS.ask(self.server, self.run, op, "to get on")

    def cancel(self) -> None:
        _EVENTS.ask(self.server, self.run, "cancel", "the test is over")


def publish(server: Server, **request: Any) -> pb.PublishAck:
    """The answer to one request."""
    (ack,) = server.events.PublishEvents(iter([pb.PublishRequest(**request)]), metadata=server.metadata, timeout=TIMEOUT_S)
    assert isinstance(ack, pb.PublishAck)
    return ack


@contextmanager
def staged(server: Server, **fields: Any) -> Iterator[Stage]:
    """A stage that has come to its silence. It is cancelled at the end, if it still goes on."""
    stage = Stage(server, **fields)
    with _EVENTS.read(server, stage.run) as events:
        assert next(event for event in events if event["type"] == "AGENT_STARTED")
    try:
        yield stage
    finally:
        if server.task(stage.run).get("status") in ("RUNNING", "PAUSED"):
            stage.cancel()
