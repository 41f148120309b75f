"""Who is asked first, and who follows: every order for every draw."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from orchestrator.upstreams.balance import Names, ordered


@pytest.mark.parametrize(
    ("names", "draws", "after", "order"),
    [
        (("a", "b", "c"), [], None, "abc"),
        (("a", "b", "c"), [], "a", "bca"),
        (("a", "b", "c"), [], "b", "cab"),
        (("a", "b", "c"), [], "c", "abc"),
        (("a", "b", "c"), [], "gone", "abc"),
        (("a",), [], "a", "a"),
        ({"a": 3, "b": 1}, [0.0, 0.0], None, "ab"),
        ({"a": 3, "b": 1}, [0.74, 0.99], None, "ab"),
        ({"a": 3, "b": 1}, [0.75, 0.99], None, "ba"),
        ({"a": 3, "b": 1}, [0.75, 0.99], "b", "ab"),
        ({"a": 1, "b": 1, "c": 2}, [0.5, 0.5, 0.0], None, "cba"),
        ({"z": 0, "a": 1, "y": 0, "b": 1}, [0.5, 0.0], None, "bazy"),
        ({"a": 0.1, "b": 0.2}, [1 - 2**-53, 0.0], None, "ba"),
    ],
)
def test_orders(names: Names, draws: Sequence[float], after: str | None, order: str) -> None:
    left = iter(draws)
    assert "".join(ordered(names, lambda: next(left), after)) == order
    assert list(left) == []


def test_each_is_first_in_proportion_to_its_weight() -> None:
    draw = random.Random(8).random
    firsts = Counter(ordered({"a": 3, "b": 1, "c": 0}, draw)[0] for _ in range(4000))
    assert set(firsts) == {"a", "b"}
    assert 0.72 < firsts["a"] / 4000 < 0.78
