"""Which upstream answers: the policy of `decision.py` carried out over scripted upstreams."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from orchestrator.errors import InvalidRequest
from orchestrator.metrics import NoMetrics
from orchestrator.upstreams.config import BreakerConfig, ScriptedConfig
from orchestrator.upstreams.errand import FailedTry, Hedged
from orchestrator.upstreams.route import Route
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import (
    Call,
    Delta,
    Finish,
    ModelCard,
    Piece,
    UpstreamCut,
    UpstreamRejected,
    UpstreamResting,
)


class Counted(NoMetrics):
    def __init__(self) -> None:
        self.circuits: list[tuple[str, str]] = []
        self.fallbacks = ""

    def circuit(self, upstream: str, state: str) -> None:
        self.circuits.append((upstream, state))

    def fallback(self, upstream: str) -> None:
        self.fallbacks += upstream


class Playing(ScriptedUpstream):
    """A scripted upstream that may change its mind."""

    def __init__(self, name: str, script: str) -> None:
        super().__init__(name)
        self.play(script)

    def play(self, script: str) -> None:
        self._config = ScriptedConfig(kind="scripted", script=script)


class Bench:
    """Scripted upstreams named by letters, a router over them, and what it told about failed tries."""

    def __init__(self, *scripts: str, retries: int = 0, breaker: BreakerConfig | None = None, **route: Any) -> None:
        self.upstreams = {name: Playing(name, script) for name, script in zip("abc", scripts, strict=False)}
        self.slept: list[float] = []
        self.failures: list[tuple[str, int, str, float, str | None]] = []
        self.now = 0.0
        self.metrics = Counted()
        self.route = Route.model_validate(route)
        self.router = Router(
            self.upstreams,
            dict.fromkeys(self.upstreams, retries),
            dict.fromkeys(self.upstreams, breaker),
            metrics=self.metrics,
            clock=lambda: 0.0,
            monotonic=lambda: self.now,
            chance=lambda: 0.999,
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 2))

    async def _failed(self, failed: FailedTry | Hedged) -> None:
        if isinstance(failed, FailedTry):
            self.failures.append(
                (failed.upstream, failed.attempt, failed.error.code, round(failed.delay_s, 2), failed.next_upstream)
            )

    @property
    def asked(self) -> str:
        """How often each has been asked."""
        return " ".join(f"{name}{len(upstream.witness.calls)}" for name, upstream in self.upstreams.items())

    async def ask(self, prompt: str = "hi", *, until_s: float = math.inf, **call: Any) -> tuple[str, int, list[Piece]]:
        request = Call("task-1", "m", {"messages": [{"role": "user", "content": prompt}]}, **call)
        async with self.router.ask(list(self.upstreams), request, self._failed, route=self.route, until_s=until_s) as answer:
            pieces = [piece async for batch in answer for piece in batch]
        return answer.upstream, answer.attempt, [piece for piece in pieces if isinstance(piece, Delta | Finish)]


HI = [Delta(0, "hi"), Finish(0, "stop")]


async def test_the_first_upstream_answers() -> None:
    bench = Bench('say "hi"', "cut")
    assert (await bench.ask(), bench.failures, bench.slept) == (("a", 1, HI), [], [])
    assert len(bench.upstreams["b"].witness.calls) == 0


async def test_a_failed_try_is_repeated_with_patience_and_then_the_next_upstream_is_asked() -> None:
    bench = Bench("status 429 retry-after 2", "cut", 'say "hi"', retries=1)
    assert await bench.ask() == ("c", 5, HI)
    assert bench.failures == [
        ("a", 1, "rate_limit_exceeded", 2.0, "a"),
        ("a", 2, "rate_limit_exceeded", 0.0, "b"),
        ("b", 3, "upstream_cut", 0.25, "b"),
        ("b", 4, "upstream_cut", 0.0, "c"),
    ]
    assert bench.slept == [2.0, 0.25]


async def test_what_went_wrong_once_goes_well_when_tried_again() -> None:
    assert await Bench('once status 503; say "hi"', retries=1).ask() == ("a", 2, HI)


async def test_when_all_fail_the_most_telling_error_is_raised_and_the_last_try_is_told_too() -> None:
    bench = Bench("status 429 retry-after 99", "cut")
    with pytest.raises(UpstreamRejected) as raised:
        await bench.ask()
    assert (raised.value.status, raised.value.retry_after_s) == (429, 99)
    assert bench.failures == [("a", 1, "rate_limit_exceeded", 0.0, "b"), ("b", 2, "upstream_cut", 0.0, None)]


async def test_a_bad_request_is_bad_everywhere() -> None:
    bench = Bench("status 400 code context_length_exceeded", 'say "hi"', retries=3)
    with pytest.raises(UpstreamRejected) as raised:
        await bench.ask()
    assert (raised.value.status, raised.value.code) == (400, "context_length_exceeded")
    assert len(bench.upstreams["b"].witness.calls) == 0


async def test_nothing_is_tried_again_after_the_first_output() -> None:
    bench = Bench('say "hi"; cut', 'say "other"', retries=3)
    with pytest.raises(UpstreamCut):
        await bench.ask()
    assert (bench.failures, len(bench.upstreams["a"].witness.calls), len(bench.upstreams["b"].witness.calls)) == ([], 1, 0)


async def test_a_note_is_no_output() -> None:
    bench = Bench("broken; wait 1ms; cut", 'say "hi"')
    assert await bench.ask() == ("b", 2, HI)


async def test_a_script_with_a_mistake_is_the_clients_error() -> None:
    bench = Bench('say "hi"', 'say "hi"')
    request = Call("task-1", "m", {"messages": [{"role": "user", "content": "/script jump"}]})
    with pytest.raises(InvalidRequest):
        async with bench.router.ask(["a", "b"], request):
            pass
    assert bench.failures == []


async def test_leaving_the_block_closes_the_upstream() -> None:
    bench = Bench('say "hi"; hang')
    async with bench.router.ask(["a"], Call("task-1", "m", {"messages": []})) as answer:
        assert answer.upstream == "a"
        record = bench.upstreams["a"].witness.calls[0]
        assert record.ending is None
    assert record.ending == "cancelled"


async def test_no_patience_beyond_the_deadline() -> None:
    bench = Bench("status 503", 'say "hi"', retries=5)
    assert await bench.ask(deadline_ms=200) == ("b", 2, HI)


async def test_no_patience_beyond_the_time_of_the_step() -> None:
    bench = Bench("status 429 retry-after 2", 'say "hi"', retries=5)
    assert await bench.ask(until_s=1.0) == ("b", 2, HI)


async def test_a_route_says_how_patiently_each_is_asked() -> None:
    retry = {"attempts": 3, "delay_s": 1, "backoff": 3, "jitter": 0, "on": ["rate_limit"]}
    bench = Bench("status 429", "status 503", 'say "hi"', retries=0, retry=retry)
    assert await bench.ask() == ("c", 5, HI)
    assert bench.slept == [1.0, 3.0]
    assert bench.asked == "a3 b1 c1"
    assert bench.metrics.fallbacks == "ab"


async def test_weights_decide_who_is_first_and_the_others_follow() -> None:
    bench = Bench("cut", 'say "hi"')
    async with bench.router.ask({"a": 0, "b": 1}, Call("task-1", "m", {"messages": []})) as answer:
        assert answer.upstream == "b"
    async with bench.router.ask({"a": 1, "b": 0}, Call("task-1", "m", {"messages": []})) as answer:
        assert answer.upstream == "b"
    assert bench.asked == "a1 b2"


async def test_whoever_broke_the_answer_off_is_asked_last() -> None:
    bench = Bench('say "a"', 'say "b"', 'say "c"')
    for after, first in (("a", "b"), ("b", "c"), ("c", "a"), ("gone", "a")):
        async with bench.router.ask(["a", "b", "c"], Call("task-1", "m", {"messages": []}), after=after) as answer:
            assert answer.upstream == first


TWICE = BreakerConfig(failures=2, open_s=10)


async def test_one_that_fails_too_often_is_left_alone_and_one_call_finds_out_that_it_is_back() -> None:
    bench = Bench("status 503", 'say "hi"', breaker=TWICE)
    for _ in range(4):
        assert (await bench.ask())[0] == "b"
    assert bench.asked == "a2 b4"
    bench.now = 10.0
    assert (await bench.ask())[0] == "b"
    assert bench.asked == "a3 b5"
    bench.upstreams["a"].play('say "hi"')
    bench.now = 20.0
    assert [(await bench.ask())[0] for _ in range(2)] == ["a", "a"]
    states = [state for name, state in bench.metrics.circuits if name == "a"]
    assert states == ["closed", "open", "half_open", "open", "half_open", "closed"]


async def test_tries_of_one_call_count_one_by_one_and_stop_when_the_circuit_opens() -> None:
    bench = Bench("cut", 'say "hi"', retries=5, breaker=TWICE)
    assert await bench.ask() == ("b", 3, HI)
    assert bench.asked == "a2 b1"


async def test_when_all_are_left_alone_the_client_is_told_how_long() -> None:
    """Nobody is asked against better knowledge: that would keep a client waiting, and whoever is down from getting up."""
    bench = Bench("cut", "cut", breaker=TWICE)
    for _ in range(2):
        with pytest.raises(UpstreamCut):
            await bench.ask()
    bench.now = 4.0
    with pytest.raises(UpstreamResting) as raised:
        await bench.ask()
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (503, "upstream_unavailable", 6.0)
    assert bench.asked == "a2 b2"


async def test_five_hundred_calls_send_one_probe() -> None:
    """All arrive when the upstream is due; while one of them finds out, the others are answered elsewhere."""
    bench = Bench("cut", 'say "hi"', breaker=TWICE)
    for _ in range(2):
        await bench.ask()
    bench.upstreams["a"].play('wait 5ms; say "hi"')
    bench.now = 10.0
    answers = await asyncio.gather(*(bench.ask() for _ in range(500)))
    assert [name for name, _, _ in answers] == ["a"] + ["b"] * 499
    assert bench.asked == "a3 b501"


async def test_what_a_client_did_wrong_opens_nothing() -> None:
    bench = Bench('say "hi"', breaker=TWICE)
    for _ in range(5):
        with pytest.raises(UpstreamRejected):
            await bench.ask("/script status 400")
    assert (await bench.ask())[0] == "a"


async def test_answers_that_break_off_count_as_well() -> None:
    bench = Bench('say "hi"; cut', breaker=TWICE)
    for _ in range(2):
        with pytest.raises(UpstreamCut):
            await bench.ask()
    with pytest.raises(UpstreamResting):
        await bench.ask()


async def test_a_probe_whose_client_leaves_lets_the_next_one_through() -> None:
    bench = Bench("cut", breaker=TWICE)
    for _ in range(2):
        with pytest.raises(UpstreamCut):
            await bench.ask()
    bench.upstreams["a"].play("hang")
    bench.now = 10.0
    probe = asyncio.create_task(bench.ask())
    await bench.upstreams["a"].witness.nth(2)
    with pytest.raises(UpstreamResting) as raised:
        await bench.ask()
    assert raised.value.retry_after_s == 1.0
    probe.cancel()
    await asyncio.wait([probe])
    bench.upstreams["a"].play('say "hi"')
    assert (await bench.ask())[0] == "a"


async def test_who_has_yet_to_prove_itself_is_not_asked_beside_another() -> None:
    bench = Bench('wait 20ms; say "hi"', "cut", breaker=TWICE, hedge={"after_s": 0.001, "max_share": 1})
    for _ in range(2):
        with pytest.raises(UpstreamCut):
            async with bench.router.ask(["b"], Call("task-1", "m", {"messages": []})):
                pass
    bench.now = 10.0
    assert (await bench.ask())[0] == "a"
    assert bench.asked == "a1 b2"


async def test_no_more_than_its_share_of_calls_is_asked_twice() -> None:
    bench = Bench('wait 20ms; say "hi"', 'say "hi"', hedge={"after_s": 0.001, "max_share": 0.5})
    assert "".join([(await bench.ask())[0] for _ in range(4)]) == "abab"
    assert bench.asked == "a4 b2"


async def test_how_long_is_usual_is_learned_from_the_answers() -> None:
    """Twenty answers that began at once make a silence of a floor's length worth a second call."""
    bench = Bench('say "hi"', 'say "hi"', hedge={"floor_s": 0.001, "max_share": 1})
    assert {(await bench.ask())[0] for _ in range(20)} == {"a"}
    bench.upstreams["a"].play("hang")
    assert (await bench.ask())[0] == "b"


class Slow:
    """An upstream whose answer takes its time to be closed."""

    continues = False

    def __init__(self, name: str, said: Sequence[Piece]) -> None:
        self.name = name
        self.closing, self.close_now, self.closed = asyncio.Event(), asyncio.Event(), False
        self._said = said

    async def stream(self, call: Call) -> AsyncGenerator[Sequence[Piece], None]:
        try:
            if self._said:
                yield self._said
            await asyncio.Event().wait()
        finally:
            self.closing.set()
            try:
                await self.close_now.wait()
            finally:
                self.closed = True

    async def models(self) -> Sequence[ModelCard]:
        return []

    async def close(self) -> None: ...


async def test_a_client_that_leaves_while_the_loser_is_being_closed_leaves_nothing_open() -> None:
    """The winner had spoken, but nobody had it yet: its socket stayed open until the collector came by."""
    a, b = Slow("a", []), Slow("b", [Delta(0, "hi")])
    route = Route.model_validate({"hedge": {"after_s": 0.001, "max_share": 1}})

    async def ask() -> None:
        async with Router({"a": a, "b": b}).ask(["a", "b"], Call("task-1", "m", {"messages": []}), route=route):
            raise AssertionError("nobody waits for an answer any more")

    asking = asyncio.create_task(ask())
    await a.closing.wait()
    asking.cancel()
    a.close_now.set()
    b.close_now.set()
    await asyncio.wait([asking])
    assert (asking.cancelled(), a.closed, b.closed) == (True, True, True)
