"""What is wrong with a plan that is well formed: told when the configuration is loaded, with the path of each mistake. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from orchestrator.plans.steps import Agent, Approval, Child, Conditional, Parallel, Sequential
from orchestrator.plans.template import OUTPUTS, TemplateInvalid, check_expression, check_template
from orchestrator.plans.tree import Node, answering

Mistake = tuple[tuple[str, ...], str]
"""The path of a value, from the plan's root, and what is wrong with it."""


def mistakes(root: Node) -> Iterator[Mistake]:
    """Every mistake of a plan, or of a child's, without those of its children's own plans."""
    yield from _same_names(root)
    yield from _answers(root)
    yield from _Reach().step(root, frozenset())


def _own(node: Node) -> Iterator[Node]:
    """The nodes of this scope."""
    yield node
    if node.kind != "workflow":
        for child in node.children:
            yield from _own(child)


def _same_names(root: Node) -> Iterator[Mistake]:
    scopes = [f"{node.local}." for node in _own(root) if isinstance(node.spec, Child) and node.spec.model is not None]
    for node in _own(root):
        for scope in scopes:
            if node.local.startswith(scope):
                yield (*node.path, "name"), f"'{scope[:-1]}' is a model, whose steps have the names that begin with '{scope}'"
    counts = Counter(node.local for node in _own(root))
    for node in _own(root):
        if counts[node.local] > 1:
            counts[node.local] -= 1
            if counts[node.local] == 1:
                yield (*node.path, "name"), f"'{node.local}' is the name of another step as well"


def _answers(root: Node) -> Iterator[Mistake]:
    speakers = [node for node in _own(root) if node.kind in ("agent", "workflow")]
    if not speakers:
        yield root.path, "has no agent, so nobody could answer"
    elif not answering(root):
        yield root.path, "has several agents; set `answers: true` at the one whose text is the answer"
    for node in _own(root):
        if isinstance(node.spec, Sequential | Parallel):
            speaking = [child for child in node.children if child.answers]
            for child in speaking[1:]:
                yield child.path, f"answers, and so does '{speaking[0].local}', which runs as well: one answer, one agent"


class _Reach:
    """Which outputs each template can name: those of steps that have run before it."""

    def step(self, node: Node, before: frozenset[str]) -> Iterator[Mistake]:
        yield from self._templates(node, before)
        match node.spec:
            case Sequential():
                for child in node.children:
                    yield from self.step(child, before)
                    before |= _names(child)
            case Parallel() | Conditional():
                for child in node.children:
                    yield from self.step(child, before)
            case Child():
                return
            case _:
                for child in node.children:
                    yield from self.step(child, before)

    def _templates(self, node: Node, before: frozenset[str]) -> Iterator[Mistake]:
        match node.spec:
            case Agent(system=system, input=given):
                texts = {"system": system, "input": given}
            case Child(input=given):
                texts = {"input": given}
            case Approval(action=action, reason=reason):
                texts = {"action": action, "reason": reason}
            case Conditional(condition=condition):
                yield from _checked((*node.path, "if"), condition, before, expression=True)
                return
            case _:
                return
        for field, text in texts.items():
            if text is not None:
                yield from _checked((*node.path, field), text, before, expression=False)


def _checked(path: tuple[str, ...], text: str, before: Collection[str], *, expression: bool) -> Iterator[Mistake]:
    try:
        named = check_expression(text) if expression else check_template(text)
    except TemplateInvalid as error:
        yield path, str(error)
        return
    for name in sorted(named.difference(before)):
        there = f"there are {', '.join(sorted(before))}" if before else "no step runs before it"
        yield path, f"names {OUTPUTS}.{name}, which is not the output of an earlier step ({there})"


def _names(node: Node) -> frozenset[str]:
    return frozenset(each.local for each in _own(node))
