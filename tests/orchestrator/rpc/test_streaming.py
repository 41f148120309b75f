"""`StreamTaskExecution`: the same events at the same positions as at any other door, and every way in which it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode, aio

from orchestrator.engine import Engine
from orchestrator.events import Event
from orchestrator.rpc.translate import MAX_STRUCT_DEPTH
from tests.orchestrator.rpc.conftest import ALICE, MALLORY, Door, Open, Watched

AT = "2026-01-31T12:00:00.250Z"
SCRIPT = 'say "Hello there, reader"; call get_weather {"city": "Paris", "days": 3}'


def said(count: int, message: str = "word ") -> list[Event]:
    return [Event("LLM_PARTIAL", AT, "agent", message) for _ in range(count)]


ENDING = [Event("WORKFLOW_COMPLETED", AT, payload={"result": "x"}), Event("STREAM_END", AT)]


async def refused(call: Any) -> aio.AioRpcError:
    """How a call ended that must not end well. What it sent before does not matter."""
    with pytest.raises(aio.AioRpcError) as raised:
        async for _ in call:
            pass
    return raised.value


def trailers(error: aio.AioRpcError) -> dict[str, str]:
    return {str(name): str(value) for name, value in error.trailing_metadata()}


class TestWhole:
    async def test_a_run_is_streamed_as_its_log_has_it(self, door: Door) -> None:
        run_id = await door.submit(SCRIPT)
        updates = await door.read(run_id)
        entries = door.entries(run_id)
        assert updates[-1].type == "STREAM_END"
        assert [
            (update.workflow_id, update.type, update.agent_id, update.message, update.timestamp.ToJsonString(), update.seq)
            for update in updates
        ] == [
            (run_id, entry.event.type, entry.event.agent_id or "", entry.event.message or "", entry.event.timestamp, entry.seq)
            for entry in entries
        ]
        assert [update.stream_id for update in updates] == [entry.stream_id for entry in entries]

    async def test_payloads_are_there_twice_and_the_bytes_are_exact(self, door: Door) -> None:
        run_id = await door.submit(SCRIPT)
        updates = await door.read(run_id)
        assert any(update.HasField("payload") for update in updates)
        for update, entry in zip(updates, door.entries(run_id), strict=True):
            payload = json.loads(entry.body).get("payload")
            assert (json.loads(update.payload_json) if update.payload_json else None) == payload
            assert update.payload_json in entry.body
            assert (MessageToDict(update.payload) if update.HasField("payload") else None) == payload

    async def test_oddities_pass(self, door: Door) -> None:
        """Integers that no double holds, payloads too deep for protobuf's decoders, empty objects, odd times."""
        run_id, log = await door.open()
        deep: Any = 1
        for _ in range(MAX_STRUCT_DEPTH):
            deep = {"in": deep}
        deeper = {"in": deep}
        payload: dict[str, Any] = {"big": 2**63, "none": None, "yes": True, "empty": {}, "list": [[], 1.5, "\u2028"]}
        await door.write(log, run_id, [
            Event("X_ODD", "2026-02-31T12:00:00Z", payload=payload),
            Event("X_ODD", "2026-01-31T12:00:00.123456+01:00", payload={}),
            Event("X_DEEP", AT, payload=deep),
            Event("X_DEEP", AT, payload=deeper),
            *ENDING,
        ], ends=True)  # fmt: skip
        updates = await door.read(run_id)
        odd, offset, on_the_edge, too_deep = updates[:4]
        assert MessageToDict(odd.payload) == {**payload, "big": float(2**63)}
        assert json.loads(odd.payload_json) == payload
        assert odd.timestamp.ToMilliseconds() == door.entries(run_id)[0].ms
        assert offset.timestamp.ToJsonString() == "2026-01-31T11:00:00.123456Z"
        assert offset.HasField("payload")
        assert offset.payload_json == b"{}"
        assert MessageToDict(on_the_edge.payload) == deep
        assert not too_deep.HasField("payload")
        assert json.loads(too_deep.payload_json) == deeper

    async def test_the_first_metadata_say_that_the_run_was_found(self, door: Door) -> None:
        run_id, log = await door.open()
        appended = await door.write(log, run_id, said(1))
        call = door.stream(run_id, last_event_id=appended.first_seq)
        assert ("x-workflow-id", run_id) in list(await call.initial_metadata())
        await door.write(log, run_id, ENDING, ends=True)
        assert [update.type async for update in call] == ["WORKFLOW_COMPLETED", "STREAM_END"]
        assert await call.code() is StatusCode.OK


class TestResume:
    async def test_at_every_cut_by_either_position(self, door: Door) -> None:
        run_id = await door.submit(SCRIPT)
        whole = await door.read(run_id)
        for cut, update in enumerate(whole, 1):
            assert await door.read(run_id, last_event_id=update.seq) == whole[cut:]
            assert await door.read(run_id, last_stream_id=update.stream_id) == whole[cut:]
            assert await door.read(run_id, last_stream_id=update.stream_id, last_event_id=1) == whole[cut:]

    async def test_from_the_last_position_of_a_finished_run_ends_at_once(self, door: Door) -> None:
        run_id, log = await door.open()
        await door.write(log, run_id, [*said(2), *ENDING], ends=True)
        assert await door.read(run_id, last_event_id=4) == []

    async def test_while_it_runs(self, door: Door) -> None:
        run_id, log = await door.open()
        await door.write(log, run_id, said(3))
        call = door.stream(run_id, last_event_id=2)
        assert (await anext(aiter(call))).seq == 3
        await door.write(log, run_id, said(1))
        assert (await anext(aiter(call))).seq == 4
        await door.write(log, run_id, ENDING, ends=True)
        assert [update.seq async for update in call] == [5, 6]


class TestFilter:
    async def test_endings_pass_and_positions_stay(self, door: Door) -> None:
        run_id = await door.submit(SCRIPT)
        whole = await door.read(run_id)
        wanted = {"LLM_OUTPUT", "WORKFLOW_COMPLETED", "STREAM_END"}
        for cut in range(len(whole) + 1):
            expected = [update for update in whole[cut:] if update.type in wanted]
            assert await door.read(run_id, types=["LLM_OUTPUT"], last_event_id=cut) == expected

    async def test_what_a_filter_hides_moves_the_cursor(self, door: Door) -> None:
        """A filter that lets nothing of the replay through must not make the live part begin anew."""
        run_id, log = await door.open()
        await door.write(log, run_id, said(5))
        call = door.stream(run_id, types=["X_MINE"])
        await call.initial_metadata()
        await door.write(log, run_id, [Event("X_MINE", AT), *said(2), *ENDING], ends=True)
        assert [(update.type, update.seq) async for update in call] == [
            ("X_MINE", 6),
            ("WORKFLOW_COMPLETED", 9),
            ("STREAM_END", 10),
        ]

    @pytest.mark.parametrize("name", ["", "LLM_PARTIALS", "llm_partial", "X_", "X_small"])
    async def test_names_that_no_event_has(self, door: Door, name: str) -> None:
        run_id, _ = await door.open()
        error = await refused(door.stream(run_id, types=["LLM_OUTPUT", name]))
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.INVALID_ARGUMENT, "unknown_event_type")


class TestRefusals:
    async def test_no_run_is_named(self, door: Door) -> None:
        assert (await refused(door.stream(""))).code() is StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize(
        "position",
        [
            {"last_stream_id": text}
            for text in ("-", "1-", "-1", "1-1-1", "\u0661-\u0661", "1.5", "0x1", " 1-1", "9" * 17, "1" * 100_000)
        ]
        + [{"last_event_id": 2**64 - 1}],
    )
    async def test_positions_that_cannot_be(self, door: Door, position: dict[str, Any]) -> None:
        run_id, _ = await door.open()
        error = await refused(door.stream(run_id, **position))
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.INVALID_ARGUMENT, "invalid_position")

    async def test_unknown_foreign_and_malformed_ids_look_the_same(self, door: Door) -> None:
        run_id, _ = await door.open()
        strangers = [
            await refused(door.stream(run_id, metadata=MALLORY)),
            await refused(door.stream("task-" + "0" * 32)),
            await refused(door.stream("hg:{x}\n\u2028")),
            await refused(door.stream("x" * 1_000_000)),
        ]
        assert {(error.code(), error.details(), trailers(error)["x-error-code"]) for error in strangers} == {
            (StatusCode.NOT_FOUND, "No such run. It may have expired, or the id is wrong.", "run_not_found")
        }

    @pytest.mark.parametrize(
        "metadata",
        [
            (),
            (("x-api-key", "wrong"),),
            (("x-api-key", ""),),
            (("authorization", "Basic key-of-alice"),),
            (*ALICE, *ALICE),
            (*ALICE, ("authorization", "Bearer key-of-alice")),
            (("x-api-key-bin", b"key-of-alice"),),
        ],
    )
    async def test_credentials(self, door: Door, metadata: Any) -> None:
        run_id, _ = await door.open()
        error = await refused(door.stream(run_id, metadata=metadata))
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.UNAUTHENTICATED, "invalid_api_key")


class TestGaps:
    async def test_trimmed_events_are_announced_and_the_rest_can_be_had(self, door: Door) -> None:
        run_id, log = await door.open(max_events=5)
        await door.write(log, run_id, said(10))
        await door.write(log, run_id, ENDING, ends=True)
        for asked in ({}, {"last_event_id": 3}):
            error = await refused(door.stream(run_id, **asked))
            assert error.code() is StatusCode.OUT_OF_RANGE
            told = trailers(error)
            assert (told["x-missing-from"], told["x-missing-to"]) == (str(asked.get("last_event_id", 0) + 1), "7")
            assert told["x-resumes-at"] == "8"
            updates = await door.read(run_id, last_event_id=int(told["x-resumes-at"]) - 1)
            assert [update.seq for update in updates] == [8, 9, 10, 11, 12]

    async def test_a_position_of_another_history_is_refused(self, door: Door) -> None:
        run_id, log = await door.open()
        await door.write(log, run_id, [*said(3), *ENDING], ends=True)
        error = await refused(door.stream(run_id, last_stream_id="1-2"))
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.OUT_OF_RANGE, "position_gone")
        assert trailers(error)["x-resumes-at"] == "1"

    async def test_a_position_beyond_the_end_is_refused(self, door: Door) -> None:
        run_id, log = await door.open()
        await door.write(log, run_id, [*said(3), *ENDING], ends=True)
        assert (await refused(door.stream(run_id, last_event_id=6))).code() is StatusCode.OUT_OF_RANGE


class TestLeaving:
    """A reader who goes is gone at once, whichever way."""

    async def test_a_client_that_cancels(self, open_door: Open) -> None:
        watched, call = await self._reading(open_door)
        call.cancel()
        async with asyncio.timeout(5):
            await watched.closed.wait()

    async def test_a_client_whose_deadline_passes(self, open_door: Open) -> None:
        watched, call = await self._reading(open_door, timeout=0.3)
        assert (await refused(call)).code() is StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(5):
            await watched.closed.wait()

    async def test_a_client_that_vanishes(self, open_door: Open) -> None:
        engines: list[Watched] = []
        door = await open_door(wrap=_watching(engines))
        run_id, log = await door.open()
        await door.write(log, run_id, said(1))
        call = door.stream(run_id)
        await anext(aiter(call))
        await door.channel.close()
        async with asyncio.timeout(5):
            await engines[0].closed.wait()

    async def test_a_drain_says_so_and_the_position_holds(self, open_door: Open) -> None:
        watched, call = await self._reading(open_door)
        door = self.door
        await door.drain.finish(0.0, spread_s=0.0)
        error = await refused(call)
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.UNAVAILABLE, "draining")
        assert trailers(error)["grpc-retry-pushback-ms"] == "1000"
        assert watched.closed.is_set()
        assert (await refused(door.stream("task-" + "0" * 32))).code() is StatusCode.UNAVAILABLE

    async def _reading(self, open_door: Open, **more: Any) -> tuple[Watched, Any]:
        """A reader of a run that has said one word and goes on."""
        engines: list[Watched] = []
        self.door = await open_door(wrap=_watching(engines))
        run_id, log = await self.door.open()
        await self.door.write(log, run_id, said(1))
        call = self.door.stream(run_id, **more)
        assert (await anext(aiter(call))).seq == 1
        assert not engines[0].closed.is_set()
        return engines[0], call


def _watching(engines: list[Watched]) -> Any:
    def wrap(engine: Engine) -> Watched:
        engines.append(Watched(engine))
        return engines[0]

    return wrap


class TestSlowness:
    EVENTS = 3_000

    async def test_a_client_that_does_not_read_is_not_read_for(self, open_door: Open) -> None:
        """What is in memory for it is a page of the log and the transport's window; others are not kept waiting."""
        engines: list[Watched] = []
        door = await open_door(wrap=_watching(engines))
        run_id = await self._long(door)
        slow = door.stream(run_id, timeout=30)
        first = await anext(aiter(slow))
        assert [update.seq for update in await door.read(run_id)] == list(range(1, self.EVENTS + 3))
        taken = engines[0].delivered - (self.EVENTS + 2)
        assert taken <= 1024
        rest = [update.seq async for update in slow]
        assert [first.seq, *rest] == list(range(1, self.EVENTS + 3))

    async def test_a_client_that_never_reads_is_let_go(self, open_door: Open) -> None:
        engines: list[Watched] = []
        door = await open_door(wrap=_watching(engines), streams={"stall_timeout_s": 0.2})
        call = door.stream(await self._long(door), timeout=30)
        async with asyncio.timeout(10):
            await engines[0].closed.wait()
        assert b"headgate_stalled_clients_total 1.0" in door.metrics.text()
        assert b"headgate_active_streams 0.0" in door.metrics.text()
        error = await refused(call)
        assert (error.code(), trailers(error)["x-error-code"]) == (StatusCode.ABORTED, "client_stalled")

    async def _long(self, door: Door) -> str:
        run_id, log = await door.open()
        await door.write(log, run_id, said(self.EVENTS, "x" * 4096))
        await door.write(log, run_id, ENDING, ends=True)
        return run_id
