"""What follows when an upstream fails: the whole policy as tables, and as a machine that no upstream can keep busy for ever."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.upstreams.decision import (
    Ask,
    Decision,
    GiveUp,
    Standing,
    Wait,
    after_cut,
    class_of,
    decide,
    most_telling,
    upcoming,
)
from orchestrator.upstreams.route import Retry
from orchestrator.upstreams.upstream import (
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamResting,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
)


def rejected(status: int, *, retryable: bool = True, retry_after_s: float | None = None) -> UpstreamRejected:
    return UpstreamRejected(status=status, retryable=retryable, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("error", "facts", "decision"),
    [
        (UpstreamUnreachable(), {}, Ask(0, 0.25)),
        (UpstreamUnreachable(), {"chance": 0.0}, Ask(0, 0.125)),
        (UpstreamUnreachable(), {"tries": 2}, Ask(0, 0.5)),
        (UpstreamUnreachable(), {"tries": 9, "retries": 9}, Ask(0, 8.0)),
        (UpstreamUnreachable(), {"tries": 3}, Ask(1)),
        (UpstreamUnreachable(), {"tries": 3, "others": ""}, GiveUp()),
        (UpstreamUnreachable(), {"retries": 0}, Ask(1)),
        (UpstreamCut(), {}, Ask(0, 0.25)),
        (UpstreamSilent(), {}, Ask(0, 0.25)),
        (UpstreamGarbled(), {}, Ask(0, 0.25)),
        (rejected(503), {}, Ask(0, 0.25)),
        (rejected(429, retry_after_s=2), {}, Ask(0, 2.0)),
        (rejected(429, retry_after_s=0.01), {}, Ask(0, 0.25)),
        (rejected(429, retry_after_s=60), {}, Ask(1)),
        (rejected(429, retry_after_s=60), {"others": ""}, GiveUp()),
        (rejected(429, retry_after_s=2), {"time_left_s": 1.5}, Ask(1)),
        (rejected(429, retry_after_s=2), {"time_left_s": 1.5, "others": ""}, GiveUp()),
        (rejected(429, retryable=False), {}, Ask(1)),
        (rejected(404, retryable=False), {}, Ask(1)),
        (rejected(502, retryable=False), {}, Ask(1)),
        (rejected(400, retryable=False), {}, GiveUp()),
        (rejected(413, retryable=False), {}, GiveUp()),
        (UpstreamTooSlow(), {}, GiveUp()),
        (UpstreamTooSlow(), {"others": "a"}, GiveUp()),
        (UpstreamCut(), {"others": "a"}, Wait()),
        (UpstreamCut(), {"others": "xaw"}, Wait()),
        (UpstreamCut(), {"tries": 3, "others": "a"}, Wait()),
        (UpstreamCut(), {"tries": 3, "others": "xrw"}, Ask(3)),
        (UpstreamCut(), {"tries": 3, "others": "xr"}, GiveUp()),
        (UpstreamCut(), {"resting": True}, Ask(1)),
        (UpstreamCut(), {"resting": True, "others": "r"}, GiveUp()),
        (UpstreamCut(), {"retry": {"on": ["unreachable", "rate_limit"]}}, Ask(1)),
        (UpstreamUnreachable(), {"retry": {"on": ["unreachable", "rate_limit"]}}, Ask(0, 0.25)),
        (rejected(429), {"retry": {"on": []}, "others": ""}, GiveUp()),
        (UpstreamError(), {"retry": {"on": []}}, Ask(0, 0.25)),
        (UpstreamCut(), {"retry": {"delay_s": 1, "backoff": 3}, "tries": 2}, Ask(0, 3.0)),
        (UpstreamCut(), {"retry": {"delay_s": 1, "backoff": 3, "max_delay_s": 2}, "tries": 2}, Ask(0, 2.0)),
        (UpstreamCut(), {"retry": {"delay_s": 1, "jitter": 0}, "chance": 0.0}, Ask(0, 1.0)),
        (UpstreamCut(), {"retry": {"delay_s": 1, "jitter": 1}, "chance": 0.0}, Ask(0, 0.0)),
        (UpstreamCut(), {"retry": {"delay_s": 0}}, Ask(0, 0.0)),
        (UpstreamCut(), {"retry": {"delay_s": 0}, "time_left_s": 0.0}, Ask(1)),
        (rejected(429, retry_after_s=60), {"retry": {"patience_s": 60}}, Ask(0, 60.0)),
    ],
)
def test_decisions(error: UpstreamError, facts: Mapping[str, Any], decision: Decision) -> None:
    facts = {
        "tries": 1,
        "retries": 2,
        "others": "w",
        "chance": 1.0,
        "resting": False,
        "retry": {},
        "time_left_s": math.inf,
        **facts,
    }
    first = Standing(facts["tries"], facts["retries"] + 1, resting=facts["resting"])
    decided = decide(
        error,
        0,
        [first, *(OTHERS[letter] for letter in facts["others"])],
        retry=Retry.model_validate(facts["retry"]),
        chance=facts["chance"],
        time_left_s=facts["time_left_s"],
    )
    assert decided == decision


OTHERS = {
    "w": Standing(0, 1),
    "x": Standing(1, 1),
    "r": Standing(0, 1, resting=True),
    "a": Standing(1, 3, asked=True),
}
"""Willing, exhausted, resting, asked at this moment."""


@pytest.mark.parametrize(
    ("standings", "place", "found"), [("", 0, None), ("xw", 0, 1), ("ww", 1, 1), ("rxa", 0, None), ("w", 1, None)]
)
def test_the_next_one_who_may_be_asked(standings: str, place: int, found: int | None) -> None:
    assert upcoming([OTHERS[letter] for letter in standings], place) == found


@pytest.mark.parametrize(
    ("error", "facts", "delay_s"),
    [
        (UpstreamCut(), {}, 0.0),
        (UpstreamCut(), {"calls": 5}, None),
        (UpstreamResting(retry_after_s=4), {}, 4.0),
        (UpstreamResting(retry_after_s=4), {"time_left_s": 4.0}, None),
        (rejected(429, retry_after_s=11), {}, None),
        (rejected(400, retryable=False), {}, None),
        (rejected(404, retryable=False), {}, None),
        (UpstreamTooSlow(), {}, None),
    ],
)
def test_after_a_cut(error: UpstreamError, facts: Mapping[str, Any], delay_s: float | None) -> None:
    assert after_cut(error, **{"calls": 1, "attempts": 5, "retry": Retry(), "time_left_s": 60.0, **facts}) == delay_s


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (UpstreamUnreachable(), "unreachable"),
        (UpstreamCut(), "cut"),
        (UpstreamSilent(), "idle_timeout"),
        (UpstreamGarbled(), "protocol"),
        (rejected(429), "rate_limit"),
        (rejected(503), "server_error"),
        (rejected(408), "server_error"),
        (rejected(404), None),
        (UpstreamTooSlow(), None),
        (UpstreamResting(), None),
    ],
)
def test_what_a_route_calls_a_failure(error: UpstreamError, name: str | None) -> None:
    assert class_of(error) == name


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([UpstreamCut(), UpstreamUnreachable()], 1),
        ([rejected(500), UpstreamUnreachable()], 0),
        ([rejected(429), rejected(500)], 0),
        ([rejected(429), rejected(429)], 1),
        ([rejected(429), rejected(400)], 1),
        ([UpstreamResting(retry_after_s=3), UpstreamCut()], 0),
    ],
)
def test_the_most_telling_error_is_the_one_to_end_with(errors: list[UpstreamError], told: int) -> None:
    assert most_telling(errors) is errors[told]


ERRORS = (UpstreamCut(), UpstreamUnreachable(), rejected(503), rejected(429, retry_after_s=3), rejected(404, retryable=False))


@given(
    allowed=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    resting=st.lists(st.booleans(), min_size=4, max_size=4),
    data=st.data(),
)
def test_every_call_ends_and_asks_nobody_too_often(allowed: list[int], resting: list[bool], data: st.DataObject) -> None:
    """A call whose every try fails, two of them perhaps at once, and whose upstreams come and go meanwhile."""
    tries, asked, time_left_s = [0] * len(allowed), set[int](), 20.0

    def standings() -> list[Standing]:
        return [Standing(tries[p], allowed[p], asked=p in asked, resting=resting[p]) for p in range(len(allowed))]

    place = upcoming(standings())
    steps = 0
    while place is not None:
        steps += 1
        assert not resting[place]
        assert place not in asked
        tries[place] += 1
        asked.add(place)
        beside = upcoming(standings(), place + 1)
        if len(asked) == 1 and beside is not None and data.draw(st.booleans()):
            place = beside  # hedged
            continue
        decision: Decision = Wait()
        while isinstance(decision, Wait):
            place = data.draw(st.sampled_from(sorted(asked)))
            asked.remove(place)
            resting[place] = data.draw(st.booleans())
            error = data.draw(st.sampled_from(ERRORS))
            decision = decide(error, place, standings(), retry=Retry(), chance=0.5, time_left_s=time_left_s)
        assert not asked
        place = None
        if isinstance(decision, Ask):
            assert decision.delay_s < time_left_s
            time_left_s -= decision.delay_s
            place = decision.place
    assert steps <= sum(allowed)
    assert all(tried <= most for tried, most in zip(tries, allowed, strict=True))
