"""The arithmetic of progress, over plans of any shape that go any way: it never falls, and is 1 exactly when all is done."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Share
from orchestrator.runs import RunState
from tests.orchestrator.plans.acting import DONE, FAILED, Acting

AGENT = st.just({"agent": {"upstream": "a"}})


def _around(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    several = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        several.map(lambda steps: {"sequential": steps}),
        st.tuples(several, st.sampled_from(["fail_fast", "collect"])).map(
            lambda drawn: {"parallel": {"branches": drawn[0], "on_error": drawn[1]}}
        ),
        inner.map(lambda step: {"retry": {"max_retries": 2, "delay_s": 0, "step": step}}),
        inner.map(lambda step: {"conditional": {"if": "true", "then": step}}),
        inner.map(lambda step: {"workflow": {"model": "other", "plan": step}}),
    )


PLANS = st.recursive(AGENT, _around, max_leaves=12).map(lambda step: Plan.model_validate({"sequential": [step, step]}))


class Whimsical(Acting):
    """Every agent and every condition does what was drawn."""

    def __init__(self, data: st.DataObject) -> None:
        super().__init__()
        self._data = data

    async def _next(self, step: str, otherwise: Any) -> Any:
        if otherwise == "then":
            return self._data.draw(st.sampled_from(["then", "none"]))
        return self._data.draw(st.sampled_from([DONE, DONE, FAILED]))


@settings(max_examples=100, deadline=None)
@given(PLANS, st.data())
async def test_it_never_falls_and_is_one_exactly_when_the_plan_is_done(plan: Plan, data: st.DataObject) -> None:
    context = Whimsical(data)
    result = await context.act(plan)
    told = [one.progress for one in context.told]
    assert told == sorted(told)
    assert all(0.0 <= fraction <= 1.0 for fraction in told)
    assert (told[-1] == 1.0) == (result.state is RunState.COMPLETED)
    started = sum(one.status == "started" for one in context.told)
    assert started == len(context.told) - started


def test_thirds_add_up() -> None:
    """As floats they would not."""
    whole = Share.whole()
    for _ in range(3):
        inner = whole.part(3)
        for _ in range(7):
            inner.part(7).finish()
    assert (whole.finished, whole.total) == (Fraction(1), 1.0)


def test_what_was_counted_in_parts_is_not_counted_again() -> None:
    whole = Share.whole()
    half = whole.part(2)
    half.part(3).finish()
    half.finish()
    half.finish()
    assert whole.finished == Fraction(1, 2)


def test_what_a_retry_holds_counts_when_it_has_succeeded() -> None:
    whole = Share.whole()
    held = whole.part(2, held=True)
    held.part(2).finish()
    held.finish()
    assert whole.finished == 0
    whole.finish()
    assert whole.finished == 1
