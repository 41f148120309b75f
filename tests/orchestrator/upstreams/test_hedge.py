"""When a second upstream is asked, and how often at most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from orchestrator.upstreams.hedge import KEPT, Allowance, FirstTokens, hedge_after
from orchestrator.upstreams.route import Hedge


def took(seconds: Iterable[float]) -> FirstTokens:
    times = FirstTokens()
    for value in seconds:
        times.add(value)
    return times


HUNDRED = [number / 10 for number in range(100, 0, -1)]
"""10.0 … 0.1 seconds."""


@pytest.mark.parametrize(
    ("seconds", "share", "usual"),
    [
        ([], 95, None),
        ([1.0] * 19, 95, None),
        ([1.0] * 20, 95, 1.0),
        (HUNDRED, 95, 9.5),
        (HUNDRED, 50, 5.0),
        (HUNDRED, 0.1, 0.1),
        (HUNDRED, 99.9, 10.0),
        ([1.0] * 19 + [9.0], 95, 1.0),
        ([1.0] * 19 + [9.0], 96, 9.0),
        ([99.0] * 50 + [1.0] * KEPT, 99, 1.0),
    ],
)
def test_what_is_usual(seconds: list[float], share: float, usual: float | None) -> None:
    assert took(seconds).percentile(share) == usual


@pytest.mark.parametrize(
    ("hedge", "seconds", "after_s"),
    [
        ({"after_s": 2}, [], 2.0),
        ({"after_s": 0.01, "floor_s": 1}, HUNDRED, 0.01),
        ({}, [], None),
        ({}, HUNDRED, 9.5),
        ({"after_percentile": 50}, HUNDRED, 5.0),
        ({"after_percentile": 50, "floor_s": 6}, HUNDRED, 6.0),
    ],
)
def test_how_long_the_first_may_be_silent(hedge: Mapping[str, Any], seconds: list[float], after_s: float | None) -> None:
    assert hedge_after(Hedge.model_validate(hedge), took(seconds)) == after_s


def hedged(share: float, calls: str) -> str:
    """Which of these calls were asked twice; those that are `_` answered in time."""
    allowance, outcome = Allowance(), ""
    for call in calls:
        allowance.earn(share)
        outcome += call if call == "_" else "2" if allowance.spend() else "1"
    return outcome


@pytest.mark.parametrize(
    ("share", "calls", "outcome"),
    [
        (1.0, "????", "2222"),
        (0.5, "????", "1212"),
        (0.1, "?" * 20, "1111111112" * 2),
        (0.1, "_" * 18 + "???", "_" * 18 + "221"),
        (1.0, "_" * 90 + "?" * 12, "_" * 90 + "2" * 12),
        (0.25, "_" * 90 + "?" * 15, "_" * 90 + "2" * 13 + "11"),
    ],
)
def test_no_more_than_the_share(share: float, calls: str, outcome: str) -> None:
    """What was not needed is saved up to ten calls' worth, so that a bad minute after a good hour does not double the load."""
    assert hedged(share, calls) == outcome
