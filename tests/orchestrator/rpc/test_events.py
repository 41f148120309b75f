"""`PublishEvents`: what producers outside put into a run's log stands there once and in order, whatever they repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode, aio

from protos.events_pb2 import PublishAck, PublishEvent, PublishRequest
from tests.orchestrator.rpc.conftest import ALICE, MALLORY, Door


def request(run_id: str, producer_seq: int, *events: Any, writer: str = "worker", attempt: int = 1) -> PublishRequest:
    """Words are events of the type X_SAID."""
    published = [PublishEvent(type="X_SAID", message=event) if isinstance(event, str) else event for event in events]
    return PublishRequest(workflow_id=run_id, writer=writer, attempt=attempt, producer_seq=producer_seq, events=published)


async def publish(door: Door, requests: Iterable[PublishRequest], metadata: Any = ALICE) -> list[PublishAck]:
    """Send all, then read the acknowledgements."""
    return [ack async for ack in door.events.PublishEvents(iter(list(requests)), metadata=metadata, timeout=10)]


def seqs(ack: PublishAck) -> list[int]:
    return [position.seq for position in ack.positions]


def log_of(door: Door, run_id: str) -> list[tuple[str, str | None]]:
    return [(entry.event.type, entry.event.message) for entry in door.entries(run_id)]


async def test_positions_are_those_of_the_log(door: Door) -> None:
    run_id, _ = await door.open()
    acks = await publish(door, [request(run_id, 1, "a", "b"), request(run_id, 2, "c")])
    assert [(ack.workflow_id, ack.writer, ack.producer_seq, seqs(ack), ack.known_already) for ack in acks] == [
        (run_id, "worker", 1, [1, 2], False),
        (run_id, "worker", 2, [3], False),
    ]
    entries = door.entries(run_id)
    assert [position.stream_id for ack in acks for position in ack.positions] == [entry.stream_id for entry in entries]
    assert log_of(door, run_id) == [("X_SAID", "a"), ("X_SAID", "b"), ("X_SAID", "c")]


async def test_an_event_keeps_all_that_was_said(door: Door) -> None:
    run_id, _ = await door.open()
    full = PublishEvent(
        type="AGENT_THINKING", agent_id="planner", message="hm", timestamp=Timestamp(seconds=1, nanos=250_000_000)
    )
    full.payload.update({"depth": 2, "share": 0.5, "tags": ["a", None, True, {}]})
    exact = PublishEvent(type="X_EXACT", payload_json=b'{"big": 9007199254740993}')
    (ack,) = await publish(door, [request(run_id, 1, full, exact)])
    assert seqs(ack) == [1, 2]
    first, second = (entry.event for entry in door.entries(run_id))
    assert (first.type, first.agent_id, first.message, first.timestamp) == (
        "AGENT_THINKING",
        "planner",
        "hm",
        "1970-01-01T00:00:01.250Z",
    )
    assert first.payload == {"depth": 2, "share": 0.5, "tags": ["a", None, True, {}]}
    assert second.payload == {"big": 9007199254740993}


async def test_heartbeats_have_no_position(door: Door) -> None:
    run_id, _ = await door.open()
    beat = PublishEvent(type="HEARTBEAT")
    (ack,) = await publish(door, [request(run_id, 1, beat, "a", beat)])
    assert [(position.seq, position.stream_id) for position in ack.positions] == [
        (0, ""),
        (1, door.entries(run_id)[0].stream_id),
        (0, ""),
    ]


async def test_a_repeated_number_gets_the_same_positions(door: Door) -> None:
    """A producer that lost its connection sends again what it has no acknowledgement for."""
    run_id, _ = await door.open()
    first = await publish(door, [request(run_id, 1, "a"), request(run_id, 2, "b", "c")])
    again = await publish(door, [request(run_id, 2, "b", "c"), request(run_id, 1, "a"), request(run_id, 3, "d")])
    assert [list(ack.positions) for ack in again[:2]] == [list(first[1].positions), list(first[0].positions)]
    assert [ack.known_already for ack in again] == [True, True, False]
    assert [message for _, message in log_of(door, run_id)] == ["a", "b", "c", "d"]


async def test_writers_interleave_and_keep_their_order(door: Door) -> None:
    run_id, _ = await door.open()
    count = 50

    async def produce(writer: str) -> list[PublishAck]:
        acks = []
        call = door.events.PublishEvents(metadata=ALICE, timeout=10)
        for number in range(1, count + 1):
            await call.write(request(run_id, number, f"{writer}{number}", writer=writer))
            acks.append(await call.read())
        await call.done_writing()
        assert await call.read() is aio.EOF
        return acks

    left, right = await asyncio.gather(produce("l"), produce("r"))
    messages = [message or "" for _, message in log_of(door, run_id)]
    for writer, acks in (("l", left), ("r", right)):
        assert [message for message in messages if message[0] == writer] == [f"{writer}{n}" for n in range(1, count + 1)]
        assert [messages[seqs(ack)[0] - 1] for ack in acks] == [f"{writer}{n}" for n in range(1, count + 1)]
    assert len(messages) == 2 * count
    assert messages != sorted(messages), "they did not interleave"


async def test_one_stream_serves_many_runs_and_writers(door: Door) -> None:
    (one, _), (two, _) = await door.open(), await door.open()
    requests = [request(one, 1, "a"), request(two, 1, "b"), request(one, 1, "c", writer="other"), request(one, 2, "d")]
    assert [(ack.workflow_id, seqs(ack)) for ack in await publish(door, requests)] == [
        (one, [1]),
        (two, [1]),
        (one, [2]),
        (one, [3]),
    ]


async def test_what_is_published_is_read_at_once(door: Door) -> None:
    run_id, _ = await door.open()
    stream = aiter(door.stream(run_id))
    call = door.events.PublishEvents(metadata=ALICE, timeout=10)
    for number in range(1, 4):
        await call.write(request(run_id, number, f"word {number}"))
        update = await anext(stream)
        assert (update.seq, update.message) == (number, f"word {number}")
    await call.write(request(run_id, 4, PublishEvent(type="WORKFLOW_COMPLETED", payload_json=b'{"result": "done"}')))
    assert [update.type async for update in stream] == ["WORKFLOW_COMPLETED", "STREAM_END"]
    await call.done_writing()


class TestRefusals:
    """They come in acknowledgements, and the stream goes on."""

    @pytest.mark.parametrize(
        ("event", "code"),
        [
            (PublishEvent(type="NO_SUCH_TYPE"), "invalid_request"),
            (PublishEvent(), "invalid_request"),
            (PublishEvent(type="STREAM_END"), "invalid_request"),
            (PublishEvent(type="STREAM_GAP"), "invalid_request"),
            (PublishEvent(type="X_A", payload_json=b"[1]"), "invalid_request"),
            (PublishEvent(type="X_A", payload_json=b"{"), "invalid_request"),
            (PublishEvent(type="X_A", payload_json=b'{"a":' + b"[" * 100_000), "invalid_request"),
            (PublishEvent(type="X_A", payload_json=b"\xff\xfe"), "invalid_request"),
            (PublishEvent(type="X_A", payload_json=b"{}", payload={}), "invalid_request"),
            (PublishEvent(type="X_A", timestamp=Timestamp(seconds=2**60)), "invalid_request"),
            (PublishEvent(type="X_A", message="x" * 2_000_000), "invalid_request"),
        ],
    )
    async def test_of_events(self, door: Door, event: PublishEvent, code: str) -> None:
        run_id, _ = await door.open()
        acks = await publish(door, [request(run_id, 1, "a", event), request(run_id, 1, "a")])
        assert [(seqs(ack), ack.error.code) for ack in acks] == [([], code), ([1], "")]
        assert acks[0].error.message
        assert not acks[0].error.retryable

    @pytest.mark.parametrize("change", [{"writer": ""}, {"writer": "a b"}, {"attempt": 0}])
    async def test_of_requests(self, door: Door, change: dict[str, Any]) -> None:
        run_id, _ = await door.open()
        (ack,) = await publish(door, [request(run_id, 1, "a", **change)])
        assert ack.error.code == "invalid_request"

    async def test_of_what_is_skipped_fenced_forgotten_and_closed(self, door: Door) -> None:
        run_id, _ = await door.open()
        ending = PublishEvent(type="WORKFLOW_COMPLETED", payload_json=b'{"result": "x"}')
        acks = await publish(
            door,
            [
                request(run_id, 2, "b"),
                *(request(run_id, number, "a") for number in range(1, 19)),
                request(run_id, 1, "a"),
                request(run_id, 1, "z", attempt=2),
                request(run_id, 19, "late"),
                request(run_id, 2, ending, attempt=2),
                request(run_id, 3, "more", attempt=2),
                request(run_id, 2, ending, attempt=2),
            ],
        )
        codes = [ack.error.code for ack in acks if ack.error.code]
        assert codes == ["append_skipped", "append_forgotten", "fenced", "log_closed"]
        assert (acks[-1].known_already, seqs(acks[-1])) == (True, seqs(acks[-3]))
        assert log_of(door, run_id)[-2:] == [("WORKFLOW_COMPLETED", None), ("STREAM_END", None)]

    async def test_where_one_is_refused_those_that_were_sent_ahead_do_not_overtake_it(self, door: Door) -> None:
        run_id, _ = await door.open()
        acks = await publish(door, [request(run_id, 1, "a"), request(run_id, 2, PublishEvent(type="?")), request(run_id, 3, "c")])
        assert [ack.error.code for ack in acks] == ["", "invalid_request", "append_skipped"]
        assert log_of(door, run_id) == [("X_SAID", "a")]

    async def test_of_other_runs(self, door: Door) -> None:
        run_id, _ = await door.open()
        (foreign,) = await publish(door, [request(run_id, 1, "a")], metadata=MALLORY)
        (missing,) = await publish(door, [request("task-" + "0" * 32, 1, "a")])
        assert foreign.error == missing.error
        assert foreign.error.code == "run_not_found"
        assert door.entries(run_id) == []

    async def test_of_a_message_above_the_limit_ends_the_stream_and_what_was_acknowledged_holds(self, door: Door) -> None:
        run_id, _ = await door.open()
        call = door.events.PublishEvents(metadata=ALICE, timeout=10)
        await call.write(request(run_id, 1, "a"))
        assert seqs(await call.read()) == [1]
        await call.write(request(run_id, 2, "x" * (5 * 1024 * 1024)))
        assert await call.code() is StatusCode.RESOURCE_EXHAUSTED
        (ack,) = await publish(door, [request(run_id, 2, "b")])
        assert seqs(ack) == [2]


async def test_a_drain_ends_the_stream(door: Door) -> None:
    run_id, _ = await door.open()
    call = door.events.PublishEvents(metadata=ALICE, timeout=10)
    await call.write(request(run_id, 1, "a"))
    assert seqs(await call.read()) == [1]
    await door.drain.finish(0.0, spread_s=0.0)
    assert await call.code() is StatusCode.UNAVAILABLE
