"""Two tenants at the native routes: what they ask with, and what they see of each other."""

from __future__ import annotations

from typing import Any

from gateway.settings import Settings
from orchestrator.runs import Principal

TASKS = "/api/v1/tasks"
ALICE = Principal(tenant="acme", key_id="alice")
MISSING = f"task-{'0' * 32}"

NOT_IDS = [
    "nobody",
    "task-",
    f"TASK-{'0' * 32}",
    f"task-{'0' * 31}g",
    "%00",
    "%ff",
    "a%2Fb",
    "..%2f",
    "%E2%80%A8",
    "x" * 5000,
    "*",
]
"""What cannot be a run's id, as it stands in a path."""


def settings(**sections: Any) -> Settings:
    keys = [{"key": "sk-a", "name": "alice", "tenant": "acme"}, {"key": "sk-b", "name": "bob", "tenant": "other"}]
    return Settings.model_validate({"auth": {"mode": "keys", "keys": keys}, **sections})


def bearer(key: str = "sk-a", **headers: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", **headers}


def script(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a task that does as it is told."""
    return {"query": f"/script\n{text}", **fields}


async def begin(server: Any, text: str, **fields: Any) -> str:
    """A new task's id."""
    answer = await server.ask("POST", TASKS, headers=bearer(), json=script(text, **fields))
    assert answer.status == 200, answer
    return str(answer.json["task_id"])


def assert_error(answer: Any, status: int, code: str | None = None, says: str = "") -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    error = answer.json["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert code is None or error["code"] == code, error
    assert says in error["message"], error


async def assert_hidden(server: Any, method: str, path: str, named: str, missing: str = MISSING, **options: Any) -> None:
    """`path` with `{}` for what only Alice may see: to Bob it is, to the letter, like what never was."""
    asked = {"x-request-id": "same"}
    foreign = await server.ask(method, path.format(named), headers=bearer("sk-b", **asked), **options)
    nowhere = await server.ask(method, path.format(missing), headers=bearer("sk-b", **asked), **options)
    assert foreign.status == 404
    assert foreign.body == nowhere.body
    volatile = {"date"}
    assert {k: v for k, v in foreign.headers.items() if k not in volatile} == {
        k: v for k, v in nowhere.headers.items() if k not in volatile
    }
