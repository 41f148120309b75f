"""Which requests ask the same: the key of an answer, within a tenant. No I/O.

All that an answer depends on is in it: the model, its plan as it is configured now, and the request as it was understood, with
its context. Left out is what only says for whom it is asked, unless the templates of the plan see it. `null` is "not given", at
the top and in messages, and `0.0` is `0`; everything else counts, because nobody here knows what it means to an upstream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.plans.plan import Plan
from orchestrator.plans.steps import Agent
from orchestrator.runs import Run, RunRequest

_SAYS_NOTHING = frozenset({"metadata", "user", "safety_identifier", "store", "prompt_cache_key"})
"""Fields about the request, with no part in its answer."""

_encode = msgspec.json.Encoder(order="deterministic").encode


MAX_CHARS = 16_000
"""A longer question is not compared by its meaning: it would have many."""


class Question(msgspec.Struct, frozen=True):
    """What the user said last, and in which `scope`: the key of all else, which has to be the same."""

    text: str
    scope: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def digest(run: Run, request: RunRequest) -> str:
    """The key of the answer to this request, for a tenant: 64 hexadecimal digits."""
    return _digest(run, request, request.body)


def question(run: Run, request: RunRequest) -> Question | None:
    """The question at the end of the conversation, if it is one in words."""
    messages = request.body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "user":
        return None
    text = _words(last.get("content"))
    if not text or len(text) > MAX_CHARS:
        return None
    around = {**request.body, "messages": [*request.body["messages"][:-1], {**last, "content": None}]}
    return Question(text, _digest(run, request, around))


def _digest(run: Run, request: RunRequest, body: Mapping[str, Any]) -> str:
    plan = _encode(request.plan)
    asked = (request.model, request.upstream_model, msgspec.Raw(plan), request.context or {}, _understood(body), _seen(run, plan))
    return hashlib.sha256(_encode(asked)).hexdigest()


def _seen(run: Run, plan: bytes) -> dict[str, Any]:
    """What templates may make of whom it is asked for. A plan that only happens to have such a word loses some hits by it."""
    known = {"metadata": run.metadata, "session_id": run.session_id}
    return {name: value for name, value in known.items() if value is not None and name.encode() in plan}


def _words(content: object) -> str:
    """Empty where there is anything but text, which no embedding of words can compare."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts: list[str] = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(text := part.get("text"), str):
            return ""
        texts.append(text)
    return "\n".join(texts).strip()


def certain(plan: Plan, body: Mapping[str, Any]) -> bool:
    """Whether each agent is asked with temperature 0, which is as near as it gets to there being one answer."""
    return all(_temperature(agent, body if node.name in plan.answers else {}) == 0 for node, agent in plan.agents())


def _temperature(agent: Agent, body: Mapping[str, Any]) -> object:
    asked = body.get("temperature")
    return agent.parameters.get("temperature") if asked is None else asked


def _understood(body: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: _number(value) for name, value in body.items() if value is not None and name not in _SAYS_NOTHING}
    messages = known.get("messages")
    if isinstance(messages, list):
        known["messages"] = [_given(message) for message in messages]
    return known


def _given(message: object) -> object:
    if not isinstance(message, dict):
        return message
    return {name: value for name, value in message.items() if value is not None}


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value
