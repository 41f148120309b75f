"""Canaries: a secret in every slot of the settings, and nothing that Headgate writes, stores or answers has any of them.

Two real processes, a gateway and its orchestrator, at log level `debug`, on backends of their own, whose files are then read byte
by byte. The upstream puts whatever it is asked with into its errors. Prompts and answers have canaries too: these are stored
where they belong, which shows that the search finds what is there, and are neither in the logs nor in Temporal's histories.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from compat_tests.conftest import unused_port
from compat_tests.doors import Server
from compat_tests.raw import CHAT, Raw, ask
from gateway.settings import load
from gateway.settings_errors import ConfigError
from tests.security.echo import ANSWER, echoing

PROMPT = "prompt-canary-91bd"
ALICE = "sk-alice-canary-key-0a1b2c3d"
CANARIES = {
    "a key": ALICE,
    "another key": "sk-bob-canary-key-4e5f6a7b",
    "the ticket secret": "ticket-canary-secret-8c9d",
    "the issuer's secret": "jwt-canary-secret-0123456789abcdef0123",
    "the secret between the halves": "internal-canary-secret-1f2e",
    "an upstream's key": "sk-upstream-canary-3d4c",
    "an upstream's header": "header-canary-5b6a",
    "Temporal's key": "temporal-canary-7988",
    "a tool's environment": "mcp-env-canary-aabb",
    "a tool's header": "mcp-header-canary-ccdd",
}


@dataclass
class Backends:
    folder: Path
    redis: str
    temporal: str
    postgres: str

    @property
    def passwords(self) -> dict[str, str]:
        return {name: urlsplit(url).password or "" for name, url in (("redis", self.redis), ("postgres", self.postgres))}


@contextmanager
def backends(folder: Path) -> Iterator[Backends]:
    command = [sys.executable, "-m", "orchestrator.embedded", "--data", str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Backends(folder, **json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(timeout=30) == 0


@contextmanager
def serving(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """A process with this configuration; its address. What it says is in `folder`."""
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps(config))
    command = [sys.executable, "-m", "headgate", "serve", "--config", str(folder / "config.yaml"), "--data", str(folder / "data")]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"listens on (http://[^\s,]+\d)", line):
                break
        else:
            raise AssertionError((folder / "log").read_text())
        try:
            yield found[1]
        finally:
            process.terminate()
            said.append(process.stdout.read())
            process.wait(timeout=30)
            (folder / "stdout").write_text("".join(said))


def configuration(places: Backends, upstream: str) -> dict[str, Any]:
    c = CANARIES
    return {
        "server": {"port": 0},
        "grpc": {"port": unused_port()},
        "auth": {
            "mode": "keys",
            "keys": [
                {"key": ALICE, "name": "alice", "tenant": "acme"},
                {"key": c["another key"], "name": "bob", "tenant": "other"},
            ],
            "ticket_secret": c["the ticket secret"],
            "jwt": {"issuer": "https://issuer/", "audience": "headgate", "secret": c["the issuer's secret"]},
        },
        "backends": {
            "redis": places.redis,
            "temporal": {"address": places.temporal, "api_key": c["Temporal's key"]},
            "postgres": places.postgres,
        },
        "upstreams": {
            "echo": {
                "kind": "openai",
                "base_url": upstream,
                "api_key": c["an upstream's key"],
                "headers": {"X-Extra": c["an upstream's header"]},
                "retries": 0,
            }
        },
        "tools": {
            "broken": {"mcp": {"command": ["false"], "env": {"TOKEN": c["a tool's environment"]}}},
            "away": {"mcp": {"url": f"http://127.0.0.1:{unused_port()}/mcp", "headers": {"X-Token": c["a tool's header"]}}},
        },
        "models": {
            "durable": {"plan": {"agent": {"upstream": "echo"}}},
            "quick": {"plan": {"agent": {"upstream": "echo"}}, "durability": "none"},
            "tooled": {"plan": {"agent": {"upstream": "echo", "tools": ["broken", "away"]}}, "durability": "none"},
        },
        "logging": {"level": "debug", "format": "json"},
    }


@dataclass
class Seen:
    """Everything that a client was told, by the place where it was."""

    told: dict[str, bytes] = field(default_factory=dict)

    def note(self, place: str, answer: Any) -> Any:
        self.told[place] = answer.body + repr(answer.headers).encode()
        return answer


def use(url: str, config: dict[str, Any]) -> tuple[Seen, str]:
    """Every door, rightly and wrongly. What it said, and the id of a durable run."""
    seen, raw, nobody = Seen(), Raw(url, ALICE), Raw(url)
    hows = {
        "durable": ("", "401", "500", "inside"),
        "quick": ("", "400", "403", "429", "500", "inside", "text"),
        "tooled": ("", "500"),
    }
    for model in hows:
        for how in hows[model]:
            seen.note(f"chat {model} {how}", raw.chat(model, f"{PROMPT} how: {how}"))
        seen.note(f"whole {model}", raw.chat(model, f"{PROMPT} how: 500", stream=False))
    run = seen.note("task", raw.send("POST", "/api/v1/tasks", {"query": f"{PROMPT} how: 500", "model": "durable"})).json[
        "task_id"
    ]
    for path in (
        "/metrics",
        "/openapi.json",
        "/docs",
        "/v1/models",
        "/readiness",
        "/api/v1/tasks",
        "/api/v1/sessions",
        "/nowhere",
    ):
        seen.note(path, raw.send("GET", path))
    for path in ("events", "timeline?mode=full", "control-state"):
        seen.note(path, raw.send("GET", f"/api/v1/tasks/{run}/{path}"))
    seen.note("stream", raw.send("GET", f"/api/v1/stream/sse?workflow_id={run}"))
    ticket = seen.note("ticket", raw.send("POST", "/api/v1/stream/tickets", {"workflow_id": run}))
    assert ticket.status == 200
    for name, key in CANARIES.items():
        wrong = {"Authorization": f"Bearer {key}x", "x-request-id": key, "User-Agent": key}
        seen.note(f"with {name}", nobody.send("GET", f"/v1/models?api_key={key}", headers={**wrong, "x-request-id": "mine"}))
        seen.note(f"as a body {name}", nobody.send("POST", CHAT, ask(key, key), headers=wrong | {"x-request-id": "mine"}))
    token = "e30." * 2 + CANARIES["the issuer's secret"]
    seen.note("token", nobody.send("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"}))
    server = Server(url, config["grpc"]["port"], ALICE)
    try:
        updates = server.streams.StreamTaskExecution(_stream_request(run), metadata=server.metadata, timeout=20)
        seen.told["grpc"] = b"".join(update.SerializeToString() for update in updates)
    finally:
        server.close()
    return seen, run


def _stream_request(run: str) -> Any:
    from protos.streaming_pb2 import StreamRequest

    return StreamRequest(workflow_id=run)


@pytest.mark.rough
def test_no_secret_is_said_logged_or_stored(tmp_path: Path) -> None:
    with backends(tmp_path / "backends") as places, echoing() as upstream:
        config = configuration(places, upstream)
        inside = {
            **config,
            "role": "orchestrator",
            "orchestrator": {"secret": CANARIES["the secret between the halves"], "port": 0},
        }
        with serving(inside, tmp_path / "orchestrator") as address:
            between = {"secret": CANARIES["the secret between the halves"], "urls": [address]}
            with serving({**config, "role": "gateway", "orchestrator": between}, tmp_path / "gateway") as url:
                seen, run = use(url, config)
            _await_archive(Raw(address, ALICE))
        secrets = CANARIES | places.passwords
    said = {
        f"{half} {name}": (tmp_path / half / name).read_bytes()
        for half in ("gateway", "orchestrator")
        for name in ("log", "stdout")
    }
    stored = {str(file.relative_to(tmp_path)): file.read_bytes() for file in _files(tmp_path / "backends")}
    found = [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, text in {**said, **seen.told, **stored}.items()
        if secret.encode() in text and not _where_it_is_kept(place)
    ]
    assert not found, found
    _search_finds_what_is_there(stored, run)
    temporal = [text for place, text in stored.items() if "temporal" in place]
    assert run.encode() in b"".join(temporal)
    for private in (PROMPT, ANSWER):
        assert not [place for place, text in said.items() if private.encode() in text], private
        assert not any(private.encode() in text for text in temporal), private


def _await_archive(orchestrator: Raw) -> None:
    """What PostgreSQL is to have, it has; its bytes are on the disk when it has stopped."""
    due = time.monotonic() + 30
    while b"headgate_archived_runs_total 0.0" in (metrics := orchestrator.send("GET", "/metrics").body):
        assert time.monotonic() < due, metrics
        time.sleep(0.1)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _where_it_is_kept(place: str) -> bool:
    """The embedded backends' own passwords are in a file that only its owner reads, and in what they were configured with."""
    return place.rpartition("/")[2] in KEPT


KEPT = {"secret", "password", "redis.conf", "pgpass"}


def _search_finds_what_is_there(stored: dict[str, bytes], run: str) -> None:
    """A search that finds nothing anywhere proves nothing."""
    in_redis = b"".join(text for place, text in stored.items() if "redis" in place)
    in_postgres = b"".join(text for place, text in stored.items() if "postgres" in place)
    assert PROMPT.encode() in in_redis
    assert ANSWER.encode() in in_redis
    assert run.removeprefix("task-").encode() in in_redis
    assert PROMPT.encode() in in_postgres


# The configuration


@pytest.mark.parametrize(
    "text",
    [
        "upstreams: {a: {kind: openai, base_url: 'http://x/v1', api_key: [CANARY]}}",
        "upstreams: {a: {kind: openai, base_url: 'http://user:CANARY@x/v1'}}",
        "upstreams: {a: {kind: openai, base_url: 'http://x/v1', headers: {a: {b: CANARY}}}}",
        "upstreams: {a: {kind: openai, base_url: 'http://x/v1', api_kye: CANARY}}",
        "auth: {mode: keys, keys: [{key: {a: CANARY}, name: a}]}",
        "auth: {mode: keys, keys: [CANARY]}",
        "auth: {mode: keys, keys: CANARY}",
        "auth: {mode: keys, keys: [{key: 'CANARY with spaces', name: a}]}",
        "auth: {ticket_secret: [CANARY]}",
        "auth: {ticket_secret: CANARY}",
        "auth: {jwt: {issuer: a, audience: b, secret: CANARY}}",
        "orchestrator: {secret: [CANARY]}",
        "backends: {redis: 'http://:CANARY@x'}",
        "backends: {postgres: 'mysql://a:CANARY@x'}",
        "backends: {postgres: ['postgresql://a:CANARY@x']}",
        "backends: {temporal: {address: 'x:1', api_key: [CANARY]}}",
        "backends: {temporal: 'https://CANARY@x'}",
        "tools: {a: {mcp: {command: ['false'], env: {T: [CANARY]}}}}",
        "tools: {a: {mcp: {url: 'http://x', headers: {T: [CANARY]}}}}",
    ],
)
def test_no_mistake_in_the_configuration_is_told_with_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text.replace("CANARY", "canary7f"))
    with pytest.raises(ConfigError) as raised:
        load(file, environ={})
    assert "canary7f" not in str(raised.value)


def test_settings_do_not_print_their_secrets(tmp_path: Path) -> None:
    places = Backends(tmp_path, "redis://:redis-canary@x:1/0", "x:1", "postgresql://a:postgres-canary@x:1/b")
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({**configuration(places, "http://x/v1"), "orchestrator": {"secret": CANARIES["a key"]}}))
    settings = load(file, environ={})
    for shown in (repr(settings), str(settings), settings.model_dump_json(), str(settings.model_dump())):
        for name, secret in (CANARIES | places.passwords).items():
            assert secret not in shown, name
