"""In which order a call's upstreams are asked. Pure: chance comes in as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Names = Sequence[str] | Mapping[str, float]
"""Upstreams in order, or with weights."""


def ordered(names: Names, chance: Callable[[], float], after: str | None = None) -> list[str]:
    """Who is asked first, and who follows when that fails.

    With weights, each is drawn in proportion to its own from those that are left; one of weight 0 only follows. `after` broke
    an answer off: whoever comes after it goes first, and it goes last. `chance` gives numbers in [0, 1).
    """
    order = _drawn(names, chance) if isinstance(names, Mapping) else list(names)
    if after in order:
        place = order.index(after) + 1
        order = order[place:] + order[:place]
    return order


def _drawn(weights: Mapping[str, float], chance: Callable[[], float]) -> list[str]:
    left = {name: weight for name, weight in weights.items() if weight > 0}
    order: list[str] = []
    while left:
        order.append(_one(left, chance()))
        del left[order[-1]]
    return order + [name for name, weight in weights.items() if not weight > 0]


def _one(weights: dict[str, float], chance: float) -> str:
    point = chance * sum(weights.values())
    for name, weight in weights.items():
        point -= weight
        if point < 0:
            return name
    return next(reversed(weights))  # rounding left nothing below 0
