"""A running server against its own description: `/openapi.json` is true, and no request that it can make up is an error of ours.

schemathesis makes them: every operation's edge cases and fifty random ones, valid and not, against a real server with real
backends, keys and tenants. What it checks and why something is off: `schemathesis.toml`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from compat_tests.conftest import unused_port
from compat_tests.served import served
from orchestrator.embedded import Addresses

EXAMPLES = 50
KEY = "sk-alice"


@pytest.fixture
def config(backends: Addresses) -> dict[str, Any]:
    return {
        "server": {"port": 0},
        "grpc": {"port": unused_port()},
        "auth": {"mode": "keys", "keys": [{"key": KEY, "name": "alice", "tenant": "acme"}]},
        "backends": {"redis": backends.redis, "temporal": backends.temporal, "postgres": backends.postgres},
        "upstreams": {"demo": {"kind": "scripted", "rate": 100_000.0, "idle_timeout_s": 600.0}},
        "models": {"headgate-demo": {"plan": {"agent": {"upstream": "demo"}}, "durability": "none"}},
        "logging": {"format": "json"},
    }


def ask(url: str, path: str, body: Any) -> Any:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.local
@pytest.mark.rough
def test_the_description_is_true(config: dict[str, Any], tmp_path: Path) -> None:
    """`served` also looks through the server's log: it has no error in it, and no key."""
    with served(config, tmp_path / "server", "whole") as url:
        messages = [{"role": "user", "content": "hi"}]
        chat = ask(url, "/v1/chat/completions", {"model": "headgate-demo", "messages": messages})["id"]
        task = ask(url, "/api/v1/tasks", {"query": "hi", "session_id": "known"})["task_id"]
        waiting = ask(url, "/api/v1/tasks", {"query": "/script\nsay 1 word\nhang"})["task_id"]
        settings = Path(__file__).with_name("schemathesis.toml").read_text()
        settings = settings.replace("KNOWN_IDS", json.dumps([chat, task, "known"])[1:-1])
        settings = settings.replace("KNOWN_WAITING", json.dumps(waiting)).replace("KNOWN_SESSIONS", '"known"')
        (tmp_path / "schemathesis.toml").write_text(settings)
        command = [str(Path(sys.executable).with_name("schemathesis")), "--no-color", "--config-file", "schemathesis.toml", "run"]
        command += [f"{url}/openapi.json", "-n", str(EXAMPLES), "--seed", "1", "--phases", "examples,coverage,fuzzing"]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)
    shutil.rmtree(tmp_path / ".schemathesis", ignore_errors=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
