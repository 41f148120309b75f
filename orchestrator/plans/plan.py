"""Plans: what a model's name stands for, as a tree of steps. Validated when the configuration is loaded. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from orchestrator.plans.check import Mistake, mistakes
from orchestrator.plans.steps import Agent, Child, Step
from orchestrator.plans.tree import Node, answering, grow


class Plan(Step):
    """A tree of steps with one root, which is written as a step is."""

    @cached_property
    def root(self) -> Node:
        return grow(self)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The agents whose deltas are the run's answer. Of several, only one speaks in any run."""
        return answering(self.root)

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """Every step by its name."""
        return {node.name: node for node in self.root.walk()}

    @property
    def single(self) -> bool:
        """One agent and nothing else: a plain conversation."""
        return self.agent is not None

    def about(self) -> dict[str, int]:
        """What viewers are told when it begins: how many steps it has at the top, if it is more than a conversation."""
        if self.single:
            return {}
        return {"steps": len(self.root.children) if self.root.kind == "sequential" else 1}

    @property
    def needs_temporal(self) -> bool:
        """Whether a step of it is a workflow of somebody else's."""
        return any(isinstance(node.spec, Child) and node.spec.type is not None for node in self.root.walk())

    def mistakes(self) -> Iterator[Mistake]:
        """What is wrong with the plan, each with its path."""
        return mistakes(self.root)

    def step(self, name: str) -> Node:
        """The step of this name. Raises KeyError."""
        return self.nodes[name]

    def outline(self) -> dict[str, Any]:
        """The plan as plain data without what only its activities need: prompts, templates and parameters stay beside the log."""
        outline = _outlined(self.kept())
        assert isinstance(outline, dict)
        return outline

    def kept(self) -> dict[str, Any]:
        """The plan as plain data."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def agents(self) -> Iterator[tuple[Node, Agent]]:
        for node in self.root.walk():
            if isinstance(node.spec, Agent):
                yield node, node.spec

    def tools(self) -> frozenset[str]:
        """Every tool, and every server of tools, of the agents that answer: theirs stand beside those of the request."""
        return frozenset(tool for node, agent in self.agents() if node.name in self.answers for tool in agent.tools)

    def upstreams(self) -> frozenset[str]:
        """Every upstream that the plan names."""
        return frozenset(upstream for _, agent in self.agents() for upstream in agent.upstream)


_WORDS = {"system": None, "input": None, "parameters": None, "action": "-", "reason": None, "condition": "-"}
"""What an outline leaves out, or has this instead of."""


def _outlined(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _outlined(inner) for key, inner in value.items() if key not in _WORDS}
        return kept | {key: stand_in for key, stand_in in _WORDS.items() if stand_in is not None and key in value}
    return [_outlined(inner) for inner in value] if isinstance(value, list) else value
