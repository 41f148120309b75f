"""Models as steps of other models' plans: what such a step stands for is put in its place. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.plans.plan import Plan
from orchestrator.plans.steps import Agent, Child, Step, StepModel

Found = Plan | Child
"""What a model is as a step: a plan, all of whose agents know their model's name, or a workflow of somebody else's."""

Find = Callable[[str], Found]


class ChildLoop(ValueError):
    """A model that is a step of itself; says by which way round."""


def with_children(plan: Plan, find: Find, inside: tuple[str, ...]) -> Plan:
    """The plan with those of its children filled in. `inside` are the models that it is a part of, itself included.

    Raises ChildLoop, and what `find` raises for a model that there is not.
    """
    filled = _filled(plan, find, inside)
    return plan if filled is plan else _anew(filled)


def named_upstream(plan: Plan, model: str) -> Plan:
    """The plan with this model's name at each agent that has none of its own."""

    def named(value: Any) -> Any:
        if isinstance(value, Agent):
            return value if value.model is not None else value.model_copy(update={"model": model})
        return _rebuilt(value, named)

    renamed = named(plan)
    return plan if renamed is plan else _anew(renamed)


def _anew(plan: Plan) -> Plan:
    """A copy carries along what was worked out of the original, its tree for one."""
    return Plan.model_validate(plan.kept())


def _filled(value: Any, find: Find, inside: tuple[str, ...]) -> Any:
    if isinstance(value, Child) and value.model is not None and value.plan is None:
        if value.model in inside:
            raise ChildLoop(" → ".join((*inside, value.model)))
        found = find(value.model)
        if isinstance(found, Child):
            return found.model_copy(update={"name": value.name, "answers": value.answers, "input": value.input})
        plan = with_children(found, find, (*inside, value.model))
        return value.model_copy(update={"plan": Step.model_validate(plan.kept())})
    return _rebuilt(value, lambda inner: _filled(inner, find, inside))


def _rebuilt(value: Any, each: Callable[[Any], Any]) -> Any:
    """A copy of a step with `each` applied to the steps in it."""
    if isinstance(value, tuple):
        return tuple(each(inner) for inner in value)
    if not isinstance(value, StepModel):
        return value
    changed = {}
    for field in type(value).model_fields:
        before = getattr(value, field)
        if isinstance(before, StepModel | tuple) and (after := each(before)) is not before and after != before:
            changed[field] = after
    return value.model_copy(update=changed) if changed else value
