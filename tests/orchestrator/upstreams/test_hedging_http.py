"""Two upstreams at once, over real sockets: whoever speaks first answers, and no other socket stays open, however it ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import pytest

from orchestrator.metrics import NoMetrics
from orchestrator.upstreams.config import OpenAIConfig
from orchestrator.upstreams.errand import FailedTry, Hedged
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.route import Route
from orchestrator.upstreams.routing import Answer, Router
from orchestrator.upstreams.scripted_server import ScriptedServer
from orchestrator.upstreams.upstream import Call, Delta, UpstreamError, UpstreamRejected, UpstreamTooSlow
from orchestrator.upstreams.witness import ScriptedCall

CLOSED_WITHIN_S = 0.25
"""P14."""

HEDGE: Mapping[str, Any] = {"after_s": 0.02, "max_share": 1}


class Counted(NoMetrics):
    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def fallback(self, upstream: str) -> None:
        self.calls.append(("fallback", upstream))

    def hedge(self, upstream: str, outcome: str) -> None:
        self.calls.append((outcome, upstream))


class Pair:
    """Two servers, each obeying its script, and a router that knows them as `a` and `b`. A `wait` of a script ends when the
    test says `go`, so that nothing here depends on how fast the machine is."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.go = {"a": asyncio.Event(), "b": asyncio.Event()}
        self.servers: dict[str, ScriptedServer] = {}
        self.metrics = Counted()
        self.settings: dict[str, Any] = {}
        self.told: list[tuple[str, str | None]] = []
        self.failed = asyncio.Event()
        """A try has failed, as far as the router knows."""
        self._session = session

    def waiting(self, name: str) -> Callable[[float], Awaitable[None]]:
        async def wait(_: float) -> None:
            await self.go[name].wait()

        return wait

    def router(self, addresses: Mapping[str, str]) -> Router:
        upstreams = {
            name: OpenAIUpstream(name, OpenAIConfig(kind="openai", base_url=url, **self.settings), self._session)
            for name, url in addresses.items()
        }
        return Router(upstreams, metrics=self.metrics)

    @asynccontextmanager
    async def ask(
        self, *, addresses: Mapping[str, str] | None = None, deadline_ms: int | None = None, **hedge: Any
    ) -> AsyncIterator[Answer]:
        addresses = {name: server.base_url for name, server in self.servers.items()} | dict(addresses or {})
        route = Route.model_validate({"hedge": {**HEDGE, **hedge}})
        call = Call("task-1", "m", {"messages": [{"role": "user", "content": "hi"}]}, deadline_ms=deadline_ms)
        async with asyncio.timeout(10), self.router(addresses).ask(["a", "b"], call, self._tell, route=route) as answer:
            yield answer

    async def _tell(self, what: FailedTry | Hedged) -> None:
        if isinstance(what, Hedged):
            self.told.append(("hedged", what.second))
        else:
            self.told.append((what.error.code, what.next_upstream))
            self.failed.set()

    async def call(self, name: str, number: int = 0) -> ScriptedCall:
        """The server's record of a call, as soon as it arrives."""
        async with asyncio.timeout(10):
            return await self.servers[name].witness.nth(number)

    async def closed(self, *names: str) -> None:
        """Every call of these servers was closed by us, in time."""
        for name in names:
            call = self.servers[name].witness.calls[0]
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await call.closed.wait()
            assert call.ending == "cancelled"

    def when(self, event: Awaitable[Any], then: str) -> asyncio.Task[None]:
        async def follow() -> None:
            await event
            self.go[then].set()

        return asyncio.create_task(follow())


@asynccontextmanager
async def playing(a: str | None, b: str | None) -> AsyncIterator[Pair]:
    async with upstream_session() as session:
        pair = Pair(session)
        async with AsyncExitStack() as stack:
            for name, script in (("a", a), ("b", b)):
                if script is not None:
                    server = ScriptedServer(script, sleep=pair.waiting(name))
                    pair.servers[name] = await stack.enter_async_context(server.running())
            yield pair


async def text(answer: Answer) -> str:
    said = ""
    async for pieces in answer:
        said += "".join(piece.content or "" for piece in pieces if isinstance(piece, Delta))
    return said


@pytest.mark.parametrize("silence", ["hang", "blank 1KB; hang", "broken; hang"])
async def test_the_second_answers_when_the_first_is_silent(silence: str) -> None:
    """Before its status line, after it, or after something that is no output."""
    async with playing(silence, 'say "b1"; wait 1s; say "b2"') as pair:
        async with pair.ask() as answer:
            begun = time.monotonic()
            assert (answer.upstream, answer.hedged, answer.lost) == ("b", True, "a")
            await pair.closed("a")
            ended = pair.servers["a"].witness.calls[0].ended
            assert ended is not None
            assert ended - begun < CLOSED_WITHIN_S
            pair.go["b"].set()
            assert await text(answer) == "b1b2"
        assert (pair.told, pair.metrics.calls) == ([("hedged", "b")], [("won", "a")])


async def test_the_first_answers_after_all() -> None:
    async with playing('wait 1s; say "a1"; say "a2"', "hang") as pair:
        arrived = pair.when(pair.call("b"), "a")
        async with pair.ask() as answer:
            assert (answer.upstream, answer.hedged, answer.lost) == ("a", True, "b")
            await pair.closed("b")
            assert await text(answer) == "a1a2"
        await arrived
        assert pair.metrics.calls == [("lost", "a")]


async def test_a_first_that_speaks_in_time_is_asked_alone() -> None:
    async with playing('say "a"', "hang") as pair:
        async with pair.ask(after_s=5) as answer:
            assert (answer.upstream, answer.hedged, answer.lost, await text(answer)) == ("a", False, None, "a")
        assert (len(pair.servers["b"].witness.calls), pair.told, pair.metrics.calls) == (0, [], [])


async def test_a_first_that_has_said_something_may_be_silent_for_as_long_as_it_likes() -> None:
    async with playing('say "a1"; wait 1s; say "a2"', "hang") as pair:
        async with pair.ask(after_s=0.1) as answer:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await text(answer)
        assert len(pair.servers["b"].witness.calls) == 0


async def test_the_first_fails_while_the_second_is_starting() -> None:
    async with playing("wait 1s; cut", 'wait 1s; say "b"') as pair:
        first_fails = pair.when(pair.call("b"), "a")
        second_speaks = pair.when(pair.failed.wait(), "b")
        async with pair.ask() as answer:
            assert (answer.upstream, answer.hedged, answer.lost, await text(answer)) == ("b", True, None, "b")
        await asyncio.gather(first_fails, second_speaks)
        assert pair.told == [("hedged", "b"), ("upstream_cut", "b")]
        assert pair.metrics.calls == [("fallback", "a"), ("won", "a")]


async def test_the_second_fails_and_the_first_is_heard_out() -> None:
    async with playing('wait 1s; say "a"', "status 503") as pair:
        second_failed = pair.when(pair.failed.wait(), "a")
        async with pair.ask() as answer:
            assert (answer.upstream, answer.hedged, answer.lost, await text(answer)) == ("a", True, None, "a")
        await second_failed
        assert pair.told == [("hedged", "b"), ("upstream_rejected", "a")]


@pytest.mark.parametrize("last", ["a", "b"])
async def test_both_fail(last: str) -> None:
    """Whichever fails last, the error that tells the client most is the one that it gets."""
    async with playing("wait 1s; status 429", "wait 1s; cut") as pair:
        first = "b" if last == "a" else "a"
        failures = [pair.when(pair.call("b"), first), pair.when(pair.failed.wait(), last)]
        with pytest.raises(UpstreamRejected) as raised:
            async with pair.ask():
                pass
        await asyncio.gather(*failures)
        assert raised.value.status == 429
        assert pair.told[0] == ("hedged", "b")
        assert pair.told[1][1] == last
        assert pair.told[2][1] is None
        assert pair.metrics.calls[-1] == ("failed", "a")


async def test_a_request_that_is_refused_by_one_is_refused() -> None:
    async with playing("hang", "status 400") as pair:
        with pytest.raises(UpstreamRejected):
            async with pair.ask():
                pass
        await pair.closed("a")


async def test_cancelling_closes_both() -> None:
    """A client that leaves, a pause, a shutdown: to a call they are all the same."""
    async with playing("hang", "hang") as pair:

        async def wait() -> None:
            async with pair.ask():
                raise AssertionError("neither ever speaks")

        waiting = asyncio.create_task(wait())
        await asyncio.gather(pair.call("a"), pair.call("b"))
        waiting.cancel()
        await asyncio.wait([waiting])
        await pair.closed("a", "b")
        assert waiting.cancelled()
        assert pair.metrics.calls == [("failed", "a")]


async def test_the_deadline_closes_both() -> None:
    async with playing("hang", "hang") as pair:
        with pytest.raises(UpstreamTooSlow):
            async with pair.ask(deadline_ms=round((time.time() + 0.2) * 1000)):
                pass
        await pair.closed("a", "b")


async def test_an_answer_that_another_task_began_keeps_its_time_limit() -> None:
    """The task that waited for the first word is gone by the time the limit is reached."""
    async with playing("hang", 'say "b"; hang') as pair:
        pair.settings = {"total_timeout_s": 0.2}
        with pytest.raises(UpstreamTooSlow):
            async with pair.ask() as answer:
                await text(answer)
        assert (answer.upstream, pair.metrics.calls) == ("b", [("won", "a")])
        await pair.closed("a", "b")


async def test_a_mistake_of_ours_closes_both() -> None:
    """Whoever is told of the hedge fails: neither task may be left behind."""
    async with playing("hang", "hang") as pair:

        async def tell(_: FailedTry | Hedged) -> None:
            await pair.call("a")
            raise ValueError("no")

        route = Route.model_validate({"hedge": HEDGE})
        router = pair.router({name: server.base_url for name, server in pair.servers.items()})
        with pytest.raises(ValueError, match="no"):
            async with router.ask(["a", "b"], Call("task-1", "m", {"messages": []}), tell, route=route):
                pass
        await pair.closed("a")


async def test_a_connection_that_is_not_accepted_is_not_waited_for() -> None:
    with deaf() as address:
        async with playing(None, 'say "b"') as pair, pair.ask(addresses={"a": address}) as answer:
            assert (answer.upstream, answer.lost, await text(answer)) == ("b", "a", "b")


@pytest.mark.parametrize("address", ["http://no-such-host.invalid/v1", "http://127.0.0.1:1/v1"])
async def test_a_first_that_cannot_be_reached_is_followed_at_once(address: str) -> None:
    async with playing(None, 'say "b"') as pair, pair.ask(addresses={"a": address}, after_s=5) as answer:
        assert (answer.upstream, answer.hedged, await text(answer)) == ("b", False, "b")
        assert pair.told == [("upstream_unreachable", "b")]


async def test_a_second_whose_name_or_certificate_is_wrong_costs_the_first_nothing() -> None:
    async with playing('wait 1s; say "a"', "hang") as pair:
        wrong = pair.servers["b"].base_url.replace("http:", "https:")
        second_failed = pair.when(pair.failed.wait(), "a")
        async with pair.ask(addresses={"b": wrong}) as answer:
            assert (answer.upstream, answer.hedged, answer.lost, await text(answer)) == ("a", True, None, "a")
        await second_failed


async def test_an_error_while_the_answer_is_read_is_no_business_of_the_hedge() -> None:
    async with playing("hang", 'say "b"; cut') as pair:
        with pytest.raises(UpstreamError):
            async with pair.ask() as answer:
                await text(answer)
        await pair.closed("a")


@contextmanager
def deaf() -> Iterator[str]:
    """A server whose backlog is full, so that connecting takes for ever."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        for one in waiting:
            one.close()
