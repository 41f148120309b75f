"""Models that are plans of several steps, each step shown in the smallest way; what their agents say is in the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.settings import Settings


def agent(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": f"/script\n{script}", **more}}


def approval(name: str, **more: Any) -> dict[str, Any]:
    return {"approval": {"name": name, "action": f"do {name}", "reason": "it is due", **more}}


def model(*steps: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"plan": {"sequential": list(steps)}, "durability": "none", **more}


SPEAK = agent("speaker", 'say "Hello"', answers=True)
BRANCHES = {"parallel": {"name": "both", "branches": [agent("left", 'say "l"'), agent("right", 'wait 50ms; say "r"')]}}

PLANS: Mapping[str, Any] = {
    "plain": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"},
    "two": model(agent("first", 'say "one"'), agent("second", 'say "{{ outputs.first }} two"', answers=True)),
    "branches": model(BRANCHES, SPEAK),
    "choice": model(
        {"conditional": {"name": "which", "if": "'go' in input", "then": agent("goer", 'say "go"'), "else": agent("stayer", "")}},
        SPEAK,
    ),
    "again": model({"retry": {"name": "twice", "delay_s": 0.0, "max_retries": 1, "step": agent("shaky", "status 400")}}, SPEAK),
    "fails": model(agent("first", 'say "one"'), agent("broken", 'status 500 "host 10.0.0.1 is on fire"', answers=True)),
    "approved": model(agent("draft", 'say "a draft"'), approval("ok"), SPEAK),
    "late": model(approval("ok", timeout_s=0.05), SPEAK),
    "late-yes": model(approval("ok", timeout_s=0.05, on_timeout="approve"), SPEAK),
    "asks-twice": model(approval("one"), approval("two"), SPEAK),
    "asks-beside": model({"parallel": {"name": "both", "branches": [approval("one"), approval("two")]}}, SPEAK),
    "asks-again": model(
        {
            "retry": {
                "name": "tries",
                "delay_s": 0.0,
                "max_retries": 1,
                "step": {"sequential": {"name": "try", "steps": [approval("ok"), agent("shaky", 'once status 400; say "fine"')]}},
            }
        },
        SPEAK,
    ),
    "hangs": model(agent("first", 'say "one"'), agent("stuck", "hang", answers=True)),
    "then-hangs": model(approval("ok"), agent("stuck", 'say "wait"; hang', answers=True)),
}


def keyed(**sections: Any) -> Settings:
    """Alice may do all, Carol of her tenant only read and write, Bob belongs elsewhere."""
    keys = [
        {"key": "sk-a", "name": "alice", "tenant": "acme"},
        {"key": "sk-b", "name": "bob", "tenant": "other"},
        {"key": "sk-c", "name": "carol", "tenant": "acme", "scopes": ["runs:read", "runs:write"]},
    ]
    return Settings.model_validate({"auth": {"mode": "keys", "keys": keys}, **sections})
