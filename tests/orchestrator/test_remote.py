"""An engine in another process: what is lost on the way, and what must never be. The calls themselves: `shape` in conftest."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from orchestrator import errors
from orchestrator.engine import Engine, Idempotency, Publication, PublishedEvent, Submission, Subscription
from orchestrator.errors import HeadgateError, ModelNotFound, RunConflict, RunNotFound, Unavailable
from orchestrator.events import Entry, Gap
from orchestrator.http.calls import CALLS
from orchestrator.http.feed import FeedReader
from orchestrator.http.refusal import pack, unpack
from orchestrator.peers import OrchestratorAway
from orchestrator.runs import Run, RunState
from orchestrator.signing import HEADER
from orchestrator.streamlog.log import Position
from orchestrator.streamlog.memory import MemoryStore
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import UpstreamRejected
from tests.orchestrator.apart import SECRET, apart, internal, peers, remote
from tests.orchestrator.engines import ACME, OTHER, an_engine, script, until


async def rest(subscription: Subscription) -> list[Entry | Gap]:
    """All items to the end, however many silences there are."""
    items: list[Entry | Gap] = []
    async with asyncio.timeout(20):
        while not subscription.ended:
            items += await subscription.next(0.05)
    return items


async def ready(subscription: Subscription, count: int) -> list[Entry | Gap]:
    items: list[Entry | Gap] = []
    async with asyncio.timeout(20):
        while len(items) < count:
            items += await subscription.next(1.0)
    return items


async def whole(engine: Engine, run: Run) -> list[Entry | Gap]:
    async with engine.subscribe(ACME, run.id) as subscription:
        return await rest(subscription)


async def say(engine: Engine, run: Run, number: int, *types: str) -> None:
    """Append on behalf of somebody outside."""
    events = [PublishedEvent(each, message=f"{number}\u2028\n") for each in types or ("STATUS_UPDATE",)]
    await engine.publish(ACME, run.id, Publication("test", 1, number, events))


@pytest.fixture
async def local() -> AsyncIterator[Engine]:
    async with an_engine() as engine:
        yield engine


@pytest.fixture
async def hanging(local: Engine) -> Run:
    """A run that says nothing more by itself; three events are in its log."""
    run = await local.submit(ACME, script("hang"))
    await until(local, run.id, "AGENT_STARTED")
    return run


class TestCalls:
    def test_every_method_can_be_asked(self) -> None:
        methods = {name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if not name.startswith("_")}
        assert methods - CALLS.keys() == {"subscribe", "resolve"}

    @pytest.mark.parametrize(
        "error",
        [
            RunNotFound(),
            RunConflict("It has ended.", code="already_over"),
            ModelNotFound("No such model.", param="model"),
            Unavailable(retry_after_s=2.5),
            UpstreamRejected("Slow down.", status=429, type="rate_limit_error", code="slow", retryable=True, retry_after_s=7),
            errors.RunFailed("It failed."),
        ],
    )
    def test_an_error_is_the_same_on_the_other_side(self, error: HeadgateError) -> None:
        there = unpack(pack(error))
        assert there is not None
        assert (type(there), there.failure(), there.args) == (type(error), error.failure(), error.args)

    def test_an_error_of_a_newer_orchestrator_keeps_its_facts(self) -> None:
        packed = pack(RunConflict("Not now.")).replace(b"RunConflict", b"RunIsAsleep")
        there = unpack(packed)
        assert there is not None
        assert (type(there), there.failure()) == (HeadgateError, RunConflict("Not now.").failure())

    @pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error":{"message":"x"}}', b"[1]"])
    def test_what_is_no_refusal_is_not_taken_for_one(self, body: bytes) -> None:
        assert unpack(body) is None

    async def test_a_message_that_no_method_takes_is_refused(self, local: Engine) -> None:
        async with internal(local) as there, peers([there.url]) as known:
            for message in (b"", b"{}", b'{"run_id": 1}', b"[]", b'{"run_id": "task-1"'):
                with pytest.raises(errors.InvalidRequest):
                    await known.call("/engine/get", ACME, message, repeatable=True)
            with pytest.raises(OrchestratorAway):
                await known.call("/engine/__init__", ACME, b"{}", repeatable=True)

    async def test_a_large_body_arrives_whole(self, local: Engine) -> None:
        async with apart(local) as engine:
            messages = [{"role": "system", "content": "é " * (2 << 20)}, *script("say 1 word").body["messages"]]
            run = await engine.submit(ACME, Submission("demo", {"messages": messages}))
            await until(engine, run.id, "LLM_OUTPUT")


class TestSigning:
    """Nobody but a gateway gets an answer, and what a gateway was told about its caller cannot be changed on the way."""

    async def answer(self, url: str, target: str, headers: dict[str, str]) -> tuple[int, Any]:
        async with aiohttp.ClientSession() as http, http.get(url + target, headers=headers) as response:
            return response.status, msgspec.json.decode(await response.read())["error"]["code"]

    @pytest.mark.parametrize(
        "how",
        ["missing", "garbage", "of another secret", "old", "early", "for another path", "for another query", "for another method",
         "of another request", "twice", "with other claims"],
    )  # fmt: skip
    async def test_what_is_not_signed_as_it_should_be_is_refused(self, local: Engine, hanging: Run, how: str) -> None:
        target = f"/runs/{hanging.id}/feed?after=0"
        now = {"old": -31.0, "early": 31.0}.get(how, 0.0)
        secret = "of somebody else's" if how == "of another secret" else SECRET

        async with internal(local) as there, peers([there.url], secret=secret, clock=lambda: time.time() + now) as by:
            signed = by.headers("POST" if how == "for another method" else "GET", target, ACME)
            other = by.headers("GET", target, OTHER)
            match how:
                case "missing":
                    del signed[HEADER]
                case "garbage":
                    signed[HEADER] = "é.." + signed[HEADER]
                case "for another path":
                    target = target.replace(hanging.id, "task-" + "0" * 32)
                case "for another query":
                    target = target.replace("after=0", "after=1")
                case "of another request":
                    signed["x-request-id"] = "req-another"
                case "with other claims":
                    signed[HEADER] = other[HEADER].partition(".")[0] + "." + signed[HEADER].partition(".")[2]
                    signed["x-request-id"] = other["x-request-id"]
            headers: Any = signed
            if how == "twice":
                headers = [*signed.items(), (HEADER, signed[HEADER])]
            assert await self.answer(there.url, target, headers) == (401, "invalid_signature")

    async def test_a_signature_is_for_one_body(self, local: Engine, hanging: Run) -> None:
        """Whoever saw one request could once make any other of its caller's, in words of his own, for half a minute."""
        said, forged = msgspec.json.encode({"run_id": hanging.id}), msgspec.json.encode({"run_id": hanging.id, "reason": "no"})
        async with internal(local) as there, peers([there.url]) as by, aiohttp.ClientSession() as http:
            signed = by.headers("POST", "/engine/cancel", ACME, body=said) | {"Content-Type": "application/json"}
            for body in (forged, b"", said[:-1]):
                async with http.post(f"{there.url}/engine/cancel", data=body, headers=signed) as response:
                    code = msgspec.json.decode(await response.read())["error"]["code"]
                    assert (response.status, code) == (401, "invalid_signature")
            assert (await local.get(ACME, hanging.id)).state is RunState.RUNNING
            async with http.post(f"{there.url}/engine/cancel", data=said, headers=signed) as response:
                assert response.status == 200

    async def test_every_route_but_health_wants_a_signature(self, local: Engine) -> None:
        async with internal(local) as there, aiohttp.ClientSession() as http:
            for path in ("/stream/sse?workflow_id=x", "/stream/ws?workflow_id=x", "/runs/x/feed"):
                assert (await http.get(there.url + path)).status == 401
            assert (await http.post(f"{there.url}/engine/get", json={})).status == 401
            for path in ("/health", "/readiness"):
                assert (await http.get(there.url + path)).status == 200
            for path in ("/v1/models", "/api/v1/tasks", "/api/v1/stream/sse"):
                assert (await http.get(there.url + path)).status == 404

    async def test_a_gateway_with_another_secret_tells_its_clients_nothing_of_keys(self, local: Engine, hanging: Run) -> None:
        """A 401 would send them to look for what is wrong with theirs."""
        async with internal(local) as there, remote(there.url, secret="of somebody else's") as engine:
            with pytest.raises(OrchestratorAway):
                await engine.get(ACME, hanging.id)
            with pytest.raises(OrchestratorAway):
                async with engine.subscribe(ACME, hanging.id):
                    pytest.fail("it was let in")


class TestFeed:
    async def test_entries_are_the_logs_own(self, local: Engine, hanging: Run) -> None:
        """To the byte, positions and separators that other event streams escape included."""
        await say(local, hanging, 1, "STATUS_UPDATE", "X_OWN", "WARNING")
        await local.cancel(ACME, hanging.id)
        there = await whole(local, hanging)
        async with apart(local) as engine:
            assert await whole(engine, hanging) == there
            for entry in there[:-1]:
                assert isinstance(entry, Entry)
                for position in (Position(entry.seq), Position(entry.seq, entry.ms)):
                    async with engine.subscribe(ACME, hanging.id, position) as subscription:
                        assert await rest(subscription) == there[entry.seq :]

    async def test_a_place_at_the_end_ends_at_once(self, local: Engine, hanging: Run) -> None:
        await local.cancel(ACME, hanging.id)
        last = (await whole(local, hanging))[-1]
        assert isinstance(last, Entry)
        async with apart(local) as engine, engine.subscribe(ACME, hanging.id, Position(last.seq, last.ms)) as subscription:
            assert (await rest(subscription), subscription.ended, await subscription.next(5.0)) == ([], True, ())

    async def test_a_place_that_does_not_exist_is_a_gap_and_told_once(self, local: Engine, hanging: Run) -> None:
        await local.cancel(ACME, hanging.id)
        async with local.subscribe(ACME, hanging.id, Position(2, 12345)) as subscription:
            there = await rest(subscription)
        async with apart(local) as engine, engine.subscribe(ACME, hanging.id, Position(2, 12345)) as subscription:
            assert await rest(subscription) == there
        assert [isinstance(item, Gap) for item in there[:2]] == [True, False]

    async def test_runs_that_are_not_the_callers_are_refused_on_entry(self, local: Engine, hanging: Run) -> None:
        async with apart(local) as engine:
            for principal, run_id in ((OTHER, hanging.id), (ACME, "task-" + "0" * 32)):
                with pytest.raises(RunNotFound):
                    async with engine.subscribe(principal, run_id):
                        pytest.fail("it was let in")

    @pytest.mark.parametrize(
        "named", ["", "nobody", "../engine", "a\u2028b", f"task-{'0' * 32}/feed?x=", "task-\ud800", "x" * 9000]
    )
    async def test_what_is_no_id_is_no_run_and_asks_for_nothing(self, local: Engine, named: str) -> None:
        """The gRPC door hands on what its clients wrote: `../x` became another path at the orchestrator, and an outage here."""
        async with apart(local) as there:
            with pytest.raises(RunNotFound):
                async with there.subscribe(ACME, named):
                    pass

    async def test_silence_is_not_an_error_and_not_the_end(self, local: Engine, hanging: Run) -> None:
        async with apart(local) as engine, engine.subscribe(ACME, hanging.id) as subscription:
            await ready(subscription, 2)
            for _ in range(3):
                assert (await subscription.next(0.01), subscription.ended) == ((), False)
            await say(local, hanging, 1)
            assert len(await ready(subscription, 1)) == 1

    async def test_cancelling_reaches_the_upstream(self) -> None:
        upstream = ScriptedUpstream("demo")
        async with an_engine(upstream=upstream) as local, apart(local) as engine:
            run = await engine.submit(ACME, script("say 1 word; hang"))
            await until(engine, run.id, "LLM_PARTIAL")
            await engine.cancel(ACME, run.id, "enough")
            await until(engine, run.id, "STREAM_END")
        assert upstream.witness.calls[0].ending == "cancelled"

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_a_feed_is_read_alike_however_it_was_cut(self, size: int) -> None:
        data = (
            b'id: 17-1\ndata: {"type":"A"}\n\n: \n: \nid: 17-2\ndata: {"type":"X_B","message":"\xe2\x80\xa8"}\n\n'
            b'event: gap\ndata: {"missing_from":3,"missing_to":4,"resumes_at":5}\n\n: \n'
            b'id: 18-5\ndata: {"type":"STREAM_END"}\n\n'
        )
        reader = FeedReader()
        items: list[Entry | Gap] = []
        for start in range(0, len(data), size):
            assert not reader.ended
            items += reader.feed(data[start : start + size])
        assert items == [
            Entry(1, 17, b'{"type":"A"}'),
            Entry(2, 17, b'{"type":"X_B","message":"\xe2\x80\xa8"}'),
            Gap(3, 4, 5),
            Entry(5, 18, b'{"type":"STREAM_END"}'),
        ]
        assert reader.ended

    @pytest.mark.parametrize(
        "data", [b"\n\n", b"id: 1-2\n\n", b"data: {}\n\n", b"event: other\ndata: {}\n\n", b"id: a-b\ndata: {}\n\n"]
    )
    def test_what_is_no_feed_is_an_error(self, data: bytes) -> None:
        with pytest.raises(ValueError, match=r".+"):
            FeedReader().feed(data)


class TestOutages:
    """An orchestrator that goes is a pause for those who read through it."""

    async def test_a_restart_makes_no_hole_and_no_repeat(self) -> None:
        """The log is elsewhere (Redis), so what is written while nobody can be asked is read afterwards."""
        store, upstream = MemoryStore(time.time), ScriptedUpstream("demo")
        async with AsyncExitStack() as first, an_engine(store=store) as other:
            mine = await first.enter_async_context(an_engine(store=store, upstream=upstream))
            there = await first.enter_async_context(internal(mine))
            run = await mine.submit(ACME, script("hang"))
            async with remote(there.url) as engine, engine.subscribe(ACME, run.id) as subscription:
                items = await ready(subscription, 2)
                for number in range(1, 4):
                    await say(mine, run, number)
                items += await ready(subscription, 3)
                await first.aclose()  # which ends the run as well: it was not durable
                for _ in range(3):
                    assert await subscription.next(0.01) == ()
                with pytest.raises(Unavailable):
                    await engine.get(ACME, run.id)
                async with internal(other, port=there.port):
                    items += await rest(subscription)
                    assert (await engine.get(ACME, run.id)).state.ended
            assert items == await whole(other, run)

    async def test_a_second_orchestrator_takes_over_at_once(self) -> None:
        store = MemoryStore(time.time)
        async with an_engine(store=store) as mine, an_engine(store=store) as other, internal(other) as spare:
            run = await mine.submit(ACME, script("hang"))
            async with AsyncExitStack() as stack:
                there = await stack.enter_async_context(internal(mine))
                async with remote(spare.url, there.url) as engine, engine.subscribe(ACME, run.id) as subscription:
                    items = await ready(subscription, 2)
                    await stack.aclose()
                    await say(mine, run, 1)
                    items += await ready(subscription, 1)
                    for _ in range(4):  # whoever's turn it is
                        await engine.get(ACME, run.id)
                    await engine.cancel(ACME, run.id)
                    items += await rest(subscription)
            assert items == await whole(other, run)

    async def test_a_draining_orchestrator_hands_its_readers_and_its_work_over(self) -> None:
        store = MemoryStore(time.time)
        async with (
            an_engine(store=store) as mine,
            an_engine(store=store) as other,
            internal(mine) as there,
            internal(other) as spare,
            remote(spare.url, there.url) as engine,
        ):
            run = await mine.submit(ACME, script("hang"))
            async with engine.subscribe(ACME, run.id) as subscription:
                items = await ready(subscription, 2)
                await there.drain.finish(0, spread_s=0)
                for _ in range(2):
                    begun = await engine.submit(ACME, script("say 1 word"))
                    assert begun.id in {each.id for each in (await other.list(ACME)).runs}
                await engine.cancel(ACME, run.id)
                items += await rest(subscription)
            assert items == await whole(other, run)

    async def test_an_outage_that_lasts_is_told(self, local: Engine, hanging: Run) -> None:
        async with AsyncExitStack() as stack:
            there = await stack.enter_async_context(internal(local))
            async with remote(there.url, outage_s=0.2) as engine, engine.subscribe(ACME, hanging.id) as subscription:
                await ready(subscription, 2)
                await stack.aclose()
                with pytest.raises(OrchestratorAway):
                    await rest(subscription)

    async def test_leaving_during_an_outage_leaves_nothing(self, local: Engine, hanging: Run) -> None:
        async with AsyncExitStack() as stack:
            there = await stack.enter_async_context(internal(local))
            async with remote(there.url) as engine:
                before = asyncio.all_tasks()
                async with engine.subscribe(ACME, hanging.id) as subscription:
                    await ready(subscription, 2)
                    await stack.aclose()
                    assert await subscription.next(0.05) == ()
                assert not [task for task in asyncio.all_tasks() - before if not task.done()]

    async def test_nobody_there_is_told_at_once(self) -> None:
        async with remote("http://127.0.0.1:1") as engine:
            with pytest.raises(OrchestratorAway):
                await engine.submit(ACME, script("say 1 word"))
            with pytest.raises(OrchestratorAway):
                async with engine.subscribe(ACME, "task-" + "0" * 32):
                    pytest.fail("it was let in")
            assert {name: each.ok for name, each in (await engine.dependencies()).items()} == dict.fromkeys(
                ("redis", "temporal", "postgres"), False
            )


class TestTrouble:
    """Servers that misbehave where an orchestrator should be."""

    @asynccontextmanager
    async def server(self, handler: Any) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def test_a_run_is_never_started_twice(self, local: Engine) -> None:
        """The connection is lost after the request has left: it may have been carried out, so nobody else is asked."""

        async def lost(request: web.Request) -> web.Response:
            await request.read()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with self.server(lost) as bad, internal(local) as good, remote(good.url, bad) as engine:
            with pytest.raises(OrchestratorAway):
                await engine.submit(ACME, script("say 1 word"))
            assert (await engine.list(ACME)).total == 0  # and this is asked again

    @pytest.mark.parametrize("anew", [False, True])
    async def test_with_an_idempotency_key_it_is_asked_for_again(self, local: Engine, anew: bool) -> None:
        """The first orchestrator begins the run and is lost before it has said so. One that begins another in any case is as lost
        as one without a key."""
        submission = script("hang", idempotency=Idempotency("k", "same", anew))

        async def lost(request: web.Request) -> web.Response:
            if request.path == "/engine/submit":
                await local.submit(ACME, submission)
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        async with self.server(lost) as bad, internal(local) as good, remote(good.url, bad) as engine:
            if anew:
                with pytest.raises(OrchestratorAway):
                    await engine.submit(ACME, submission)
            else:
                assert (await engine.submit(ACME, submission)).repeated
            (run,) = (await local.list(ACME)).runs
            await local.cancel(ACME, run.id)

    async def test_reading_does_not_run_ahead_of_the_reader(self) -> None:
        """A reader that takes nothing holds some buffers' worth, and the server finds its socket full."""
        sent = 0
        body = b'id: 17-%d\ndata: {"type":"X_A","timestamp":"","message":"' + b"x" * 1000 + b'"}\n\n'

        async def flood(request: web.Request) -> web.StreamResponse:
            nonlocal sent
            response = web.StreamResponse()
            await response.prepare(request)
            for sent in range(1, 100_001):
                await response.write(body.replace(b"%d", b"%d" % sent))
            return response

        async with self.server(flood) as url, remote(url) as engine, engine.subscribe(ACME, "task-" + "0" * 32) as subscription:
            first = await subscription.next(5.0)
            full, before = 0, -1
            while before != sent:
                before, full = sent, full + 1
                await asyncio.sleep(0.1)
            assert sent < 50_000, "all of it was taken in"
            seen: Sequence[Entry | Gap] = [*first, *await ready(subscription, 2000)]
        assert [entry.seq for entry in seen if isinstance(entry, Entry)] == list(range(1, len(seen) + 1))

    async def test_a_gap_is_told_once_although_its_connection_is_lost(self) -> None:
        """Before any event follows a gap, the reader's place is still the one before it, and the gap is found again."""
        gap = b'event: gap\ndata: {"missing_from":3,"missing_to":4,"resumes_at":5}\n\n'
        end = b'id: 18-5\ndata: {"type":"STREAM_END"}\n\n'
        asked: list[str] = []

        async def cut(request: web.Request) -> web.StreamResponse:
            asked.append(request.query["after"])
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(gap if len(asked) == 1 else gap + end)
            return response

        async with (
            self.server(cut) as url,
            remote(url) as engine,
            engine.subscribe(ACME, "task-" + "0" * 32, Position(2, 17)) as subscription,
        ):
            assert await rest(subscription) == [Gap(3, 4, 5), Entry(5, 18, b'{"type":"STREAM_END"}')]
        assert asked == ["17-2", "17-2"]
