"""A plan's steps as a tree of nodes: every step with the name that it goes by, and where it stands in the plan. No I/O.

Names that the plan leaves out are made from a step's kind and its number among those of its kind, in the order in which the plan
is read. The steps of a child model stand in a scope of their own: outside it they are `child.step`, inside it just `step`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from orchestrator.plans.steps import Agent, Approval, Child, Conditional, Kind, Parallel, Retry, Sequential, Spec, Step


class Node(msgspec.Struct, frozen=True):
    """One step. `name` is its own in the whole run, `local` its name for templates in its scope.

    `path` leads to it from the plan's root, as the configuration is written. `otherwise`: it is what its parent does if not.
    """

    name: str
    local: str
    scope: str
    kind: Kind
    spec: Spec
    path: tuple[str, ...]
    children: tuple[Node, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The agents in it that are marked as answering."""
        match self.spec:
            case Agent(answers=marked):
                return (self.name,) if marked else ()
            case Child(answers=False):
                return ()
            case Child():
                return answering(self.children[0]) if self.children else (self.name,)
            case _:
                return tuple(name for child in self.children for name in child.answers)

    @property
    def waits(self) -> bool:
        """Whether something in it may wait for people, or for others' workers."""
        external = isinstance(self.spec, Child) and self.spec.model is None
        return external or self.kind == "approval" or any(child.waits for child in self.children)

    @property
    def longest_s(self) -> float:
        """The longest that it may take, if it waits for nobody but its agents."""
        inner = [child.longest_s for child in self.children]
        match self.spec:
            case Agent(timeout_s=longest):
                return longest
            case Parallel(timeout_s=bound, max_concurrency=None):
                longest = max(inner)
            case Sequential(timeout_s=bound) | Parallel(timeout_s=bound):
                longest = sum(inner)
            case Retry(max_retries=retries, delay_s=delay, backoff=backoff, jitter=jitter):
                bound = None
                longest = inner[0] * (retries + 1) + sum(delay * backoff**number * (1 + jitter) for number in range(retries))
            case _:
                bound = getattr(self.spec, "timeout_s", None)
                longest = max(inner, default=0.0)
        return longest if bound is None else min(longest, bound)

    def walk(self) -> Iterator[Node]:
        """It and all below it, as the plan is read."""
        yield self
        for child in self.children:
            yield from child.walk()

    def agents(self) -> tuple[Node, ...]:
        return tuple(node for node in self.walk() if node.kind == "agent")


def answering(root: Node) -> tuple[str, ...]:
    """The agents whose text is the answer of the plan with this root: those that are marked, or its only one."""
    marked = root.answers
    if marked:
        return marked
    speakers = [node for node in root.walk() if node.kind == "agent" or (node.kind == "workflow" and not node.children)]
    return (speakers[0].name,) if len(speakers) == 1 else ()


def grow(root: Step, scope: str = "", path: tuple[str, ...] = ()) -> Node:
    """The tree of a plan, or of a child's."""
    return _Grower(root, scope).node(root, path)


class _Grower:
    def __init__(self, root: Step, scope: str) -> None:
        self._scope = scope
        self._given = set(_given(root))
        self._counts: dict[str, int] = {}

    def node(self, step: Step, path: tuple[str, ...]) -> Node:
        kind, spec = step.kind, step.spec
        path = (*path, kind)
        local = spec.name or self._named(kind)
        name = self._scope + local
        children = tuple(self._children(spec, name, path))
        return Node(name, local, self._scope, kind, spec.model_copy(update={"name": name}), path, children)

    def _children(self, spec: Spec, name: str, path: tuple[str, ...]) -> Iterator[Node]:
        match spec:
            case Sequential(steps=steps):
                for number, step in enumerate(steps):
                    yield self.node(step, (*path, "steps", str(number)))
            case Parallel(branches=branches):
                for number, step in enumerate(branches):
                    yield self.node(step, (*path, "branches", str(number)))
            case Conditional(then=then, otherwise=otherwise):
                yield self.node(then, (*path, "then"))
                if otherwise is not None:
                    yield self.node(otherwise, (*path, "else"))
            case Retry(step=step):
                yield self.node(step, (*path, "step"))
            case Child(plan=Step() as plan):
                yield grow(plan, f"{name}.", (*path, "plan"))
            case Agent() | Approval() | Child():
                return

    def _named(self, kind: Kind) -> str:
        while True:
            count = self._counts[kind] = self._counts.get(kind, 0) + 1
            name = kind if count == 1 else f"{kind}-{count}"
            if name not in self._given:
                return name


def _given(step: Step) -> Iterator[str]:
    spec: Any = step.spec
    if spec.name:
        yield spec.name
    match spec:
        case Sequential(steps=inner) | Parallel(branches=inner):
            for each in inner:
                yield from _given(each)
        case Conditional(then=then, otherwise=otherwise):
            yield from _given(then)
            if otherwise is not None:
                yield from _given(otherwise)
        case Retry(step=inner_step):
            yield from _given(inner_step)
        case _:
            return
