"""What a run's steps have brought so far, read from its log; and the names that templates see. No I/O.

The log is the only state that a run has: whoever goes on with it, in whichever process, knows the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from orchestrator.agents.outputs import Answers
from orchestrator.events import Event, EventType
from orchestrator.plans.steps import Child
from orchestrator.plans.template import render
from orchestrator.plans.tree import Node


class Asked(msgspec.Struct, frozen=True):
    """What a plan works on: what the user said last, and all else that the request said."""

    input: str
    messages: list[dict[str, Any]]
    context: Mapping[str, Any] = {}
    metadata: Mapping[str, Any] = {}
    session_id: str | None = None


class State:
    """Feed it a run's events, deltas excepted, in their order."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._answers = Answers()
        self._said: dict[str, str] = {}
        self._output: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._branch: dict[str, str] = {}
        self._decisions: dict[str, dict[str, Any]] = {}
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        payload = event.payload or {}
        match event.type:
            case EventType.AGENT_STARTED | EventType.LLM_OUTPUT if event.agent_id is not None:
                if (answer := self._answers.add(event)) is not None:
                    self._said[event.agent_id] = answer
            case EventType.AGENT_COMPLETED if event.agent_id is not None:
                self._output[event.agent_id] = self._said.get(event.agent_id, "")
            case EventType.APPROVAL_DECISION if "step" in payload:
                self._decisions[payload["step"]] = {
                    key: payload.get(key) for key in ("approved", "feedback", "decided_by", "modified_action")
                }
            case EventType.PROGRESS:
                name = payload.get("step_name", "")
                if payload.get("status") == "failed":
                    self._failed[name] = payload.get("error", "")
                elif payload.get("status") == "completed":
                    self._failed.pop(name, None)
                if "branch" in payload:
                    self._branch[name] = payload["branch"]
            case _:
                return

    @property
    def size(self) -> int:
        """Characters that steps have brought."""
        return sum(map(len, self._output.values()))

    def result(self, node: Node) -> str:
        """What a step has brought, as the text of an answer."""
        value = self._value(node)
        return value if isinstance(value, str) else "" if value is None else msgspec.json.encode(value).decode()

    def names(self, root: Node, node: Node, asked: Asked) -> dict[str, Any]:
        """What templates of `node` see, in a plan with this root."""
        scope_root, scope_asked = self._scope(root, node, asked)
        outputs = {each.local: self._value(each) for each in _own(scope_root) if self._has(each)}
        return {
            "input": scope_asked.input,
            "messages": scope_asked.messages,
            "outputs": outputs,
            "context": scope_asked.context,
            "metadata": scope_asked.metadata,
            "session_id": scope_asked.session_id,
        }

    def asked(self, root: Node, node: Node, asked: Asked) -> Asked:
        """What the plan that `node` stands in was asked: that of a child model has its own question."""
        return self._scope(root, node, asked)[1]

    def _scope(self, root: Node, node: Node, asked: Asked) -> tuple[Node, Asked]:
        """The plan that `node` stands in: its root, and what it was asked."""
        if not node.scope:
            return root, asked
        child = next(each for each in root.walk() if each.kind == "workflow" and f"{each.name}." == node.scope)
        above = self.asked(root, child, asked)
        assert isinstance(child.spec, Child)
        if child.spec.input is None:
            return child.children[0], above
        text = render(child.spec.input, self.names(root, child, asked))
        messages = [{"role": "user", "content": text}]
        return child.children[0], Asked(text, messages, above.context, above.metadata, above.session_id)

    def _has(self, node: Node) -> bool:
        """Whether a step has brought something by now."""
        match node.kind:
            case "agent":
                return node.name in self._output
            case "approval":
                return node.name in self._decisions
            case "workflow" if not node.children:
                return node.name in self._output
            case "conditional":
                return node.name in self._branch
            case "sequential":
                return self._has(node.children[-1])
            case "parallel":
                return any(self._has(child) or child.name in self._failed for child in node.children)
            case _:
                return self._has(node.children[0])

    def _value(self, node: Node) -> Any:
        match node.kind:
            case "agent":
                return self._output.get(node.name)
            case "approval":
                return self._decisions.get(node.name)
            case "workflow":
                return self._value(node.children[0]) if node.children else self._output.get(node.name)
            case "conditional":
                taken = {"then": 0, "else": 1}.get(self._branch.get(node.name, ""))
                return "" if taken is None else self._value(node.children[taken])
            case "sequential":
                return self._value(node.children[-1])
            case "parallel":
                return [self._branch_value(child) for child in node.children]
            case _:
                return self._value(node.children[0])

    def _branch_value(self, node: Node) -> dict[str, Any]:
        found: dict[str, Any] = {"name": node.local, "output": self._value(node) or ""}
        if node.name in self._failed:
            found["error"] = self._failed[node.name]
        return found


def _own(root: Node) -> Iterable[Node]:
    """The nodes of one plan, without those of its children's."""
    yield root
    if root.kind != "workflow":
        for child in root.children:
            yield from _own(child)
