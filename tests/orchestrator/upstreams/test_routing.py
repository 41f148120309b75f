"""Which upstream answers: the policy as a table, and its execution over scripted upstreams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.routing import Again, Decision, FailedTry, GiveUp, Onward, Router, decide, most_telling
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import (
    Call,
    Delta,
    Finish,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
)


def rejected(status: int, *, retryable: bool = True, retry_after_s: float | None = None) -> UpstreamRejected:
    return UpstreamRejected(status=status, retryable=retryable, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("error", "facts", "decision"),
    [
        (UpstreamUnreachable(), {}, Again(0.25)),
        (UpstreamUnreachable(), {"chance": 0.0}, Again(0.125)),
        (UpstreamUnreachable(), {"tries": 2}, Again(0.5)),
        (UpstreamUnreachable(), {"tries": 9, "retries": 9}, Again(8.0)),
        (UpstreamUnreachable(), {"tries": 3}, Onward()),
        (UpstreamUnreachable(), {"tries": 3, "others": False}, GiveUp()),
        (UpstreamUnreachable(), {"retries": 0}, Onward()),
        (UpstreamCut(), {}, Again(0.25)),
        (UpstreamSilent(), {}, Again(0.25)),
        (UpstreamGarbled(), {}, Again(0.25)),
        (rejected(503), {}, Again(0.25)),
        (rejected(429, retry_after_s=2), {}, Again(2.0)),
        (rejected(429, retry_after_s=0.01), {}, Again(0.25)),
        (rejected(429, retry_after_s=60), {}, Onward()),
        (rejected(429, retry_after_s=60), {"others": False}, GiveUp()),
        (rejected(429, retry_after_s=2), {"time_left_s": 1.5}, Onward()),
        (rejected(429, retry_after_s=2), {"time_left_s": 1.5, "others": False}, GiveUp()),
        (rejected(429, retryable=False), {}, Onward()),
        (rejected(404, retryable=False), {}, Onward()),
        (rejected(502, retryable=False), {}, Onward()),
        (rejected(400, retryable=False), {}, GiveUp()),
        (rejected(413, retryable=False), {}, GiveUp()),
        (UpstreamTooSlow(), {}, GiveUp()),
    ],
)
def test_decisions(error: UpstreamError, facts: Mapping[str, Any], decision: Decision) -> None:
    assert decide(error, **{"tries": 1, "retries": 2, "others": True, "chance": 1.0, **facts}) == decision


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([UpstreamCut(), UpstreamUnreachable()], 1),
        ([rejected(500), UpstreamUnreachable()], 0),
        ([rejected(429), rejected(500)], 0),
        ([rejected(429), rejected(429)], 1),
        ([rejected(429), rejected(400)], 1),
    ],
)
def test_the_most_telling_error_is_the_one_to_end_with(errors: list[UpstreamError], told: int) -> None:
    assert most_telling(errors) is errors[told]


class Bench:
    """Scripted upstreams named by letters, a router over them, and what it told about failed tries."""

    def __init__(self, *scripts: str, retries: int = 0) -> None:
        self.upstreams = {
            name: ScriptedUpstream(name, ScriptedConfig(kind="scripted", script=script))
            for name, script in zip("abc", scripts, strict=False)
        }
        self.slept: list[float] = []
        self.failures: list[tuple[str, int, str, float, str | None]] = []
        self.router = Router(
            self.upstreams, dict.fromkeys(self.upstreams, retries), clock=lambda: 0.0, chance=lambda: 1.0, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def _failed(self, failed: FailedTry) -> None:
        self.failures.append((failed.upstream, failed.attempt, failed.error.code, failed.delay_s, failed.next_upstream))

    async def ask(self, **call: Any) -> tuple[str, int, list[Piece]]:
        request = Call("task-1", "m", {"messages": [{"role": "user", "content": "hi"}]}, **call)
        async with self.router.ask(list(self.upstreams), request, self._failed) as answer:
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
    assert bench.slept == [2.0, 0.0, 0.25, 0.0]


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
