"""The processes of a measurement: the upstream on the core of the load; the ceiling and Headgate on theirs, children included."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import plans
from bench.processes import on_core

KEY = "sk-bench"
"""What `bench.load` sends; where nobody needs a key, it says nothing."""

_DATA = {"headgate": "data", "guarded": "guarded-data"}
_START_S = 90.0
_STOP_S = 40.0


@dataclass(frozen=True)
class Target:
    """Something to put load on. `prefix` goes in front of the model's name; `pid` is the root of the processes to count."""

    name: str
    url: str
    pid: int
    prefix: str = ""
    grpc_port: int = 0
    redis: str = ""


@dataclass(frozen=True)
class Cores:
    servers: int
    load: int

    @classmethod
    def of_machine(cls) -> Cores:
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[-1])


@contextmanager
def serving(names: Sequence[str], folder: Path, cores: Cores, profile: Path | None) -> Iterator[dict[str, Target]]:
    """Start what the targets need, and stop it again. Logs are in `folder`. `native` is the whole of a Headgate."""
    with ExitStack() as stack:
        ports = _free_ports(6)
        upstream = f"http://127.0.0.1:{ports[0]}"
        targets: dict[str, Target] = {}
        with on_core(cores.load):
            pid = stack.enter_context(_process("upstream", _module("upstream", "--port", str(ports[0])), folder))
        _await_ready("upstream", upstream + "/v1/models")
        targets["direct"] = Target("direct", upstream + "/v1/chat/completions", pid)
        with on_core(cores.servers):
            if "ceiling" in names:
                command = _module("ceiling", "--port", str(ports[1]), "--upstream", targets["direct"].url)
                pid = stack.enter_context(_process("ceiling", command, folder))
                targets["ceiling"] = Target("ceiling", f"http://127.0.0.1:{ports[1]}/v1/chat/completions", pid)
                _await_ready("ceiling", f"http://127.0.0.1:{ports[1]}/")
            if {"none", "durable", "native"} & set(names):
                command = _headgate(folder, "headgate", {}, upstream, ports[2:4], profile)
                pid = stack.enter_context(_process("headgate", command, folder))
                url = f"http://127.0.0.1:{ports[2]}"
                _await_ready("headgate", url + "/readiness", pid)
                targets["none"] = Target("none", url + "/v1/chat/completions", pid)
                targets["durable"] = Target("durable", url + "/v1/chat/completions", pid, "durable/")
                targets["native"] = Target("native", url, pid, grpc_port=ports[3], redis=_redis(folder))
            if "guarded" in names:
                command = _headgate(folder, "guarded", GUARDED, upstream, ports[4:], None)
                pid = stack.enter_context(_process("guarded", command, folder))
                url = f"http://127.0.0.1:{ports[4]}"
                _await_ready("guarded", url + "/readiness", pid)
                targets["guarded"] = Target("guarded", url + "/v1/chat/completions", pid)
        yield {name: targets[name] for name in names}


_PLENTY = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "runs": 10**6, "streams": 10**6}
GUARDED: Mapping[str, Any] = {
    "auth": {"mode": "keys", "keys": [{"key": KEY, "name": "bench"}]},
    "limits": {"key": _PLENTY, "tenant": _PLENTY},
}
"""A Headgate that knows who asks, and has every limit for keys and tenants, with room for all of it."""


def _headgate(
    folder: Path, name: str, settings: Mapping[str, Any], upstream: str, ports: Sequence[int], profile: Path | None
) -> list[str]:
    http_port, grpc_port = ports
    agent = {"plan": {"agent": {"upstream": "mock"}}}
    config = {
        "upstreams": {"mock": {"kind": "openai", "base_url": upstream + "/v1"}},
        "models": {"durable/*": agent, "*": agent | {"durability": "none"}, **plans.models()},
        "logging": {"level": "warning"},
        "grpc": {"port": grpc_port},
        "streams": {"ws_ping_s": 300},  # the viewers are not made for being pinged
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    serve = ["serve", "--config", str(path), "--port", str(http_port), "--data", str(folder / _DATA[name])]
    headgate = [str(Path(sys.executable).with_name("headgate")), *serve]
    if profile is None:
        return headgate
    if spy := shutil.which("py-spy"):
        return [spy, "record", "--format", "speedscope", "--output", str(profile), "--", *headgate]
    return _module("profiled", str(profile), *serve)


def _redis(folder: Path) -> str:
    """The address of the embedded Redis."""
    settings = dict(line.split(" ", 1) for line in (folder / "data/redis/redis.conf").read_text().splitlines())
    return f"redis://:{settings['requirepass']}@127.0.0.1:{settings['port']}"


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", *arguments]


@contextmanager
def _process(name: str, command: Sequence[str], folder: Path) -> Iterator[int]:
    with (folder / f"{name}.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_ready(name: str, url: str, pid: int | None = None) -> None:
    """Wait until `url` is answered; with a `pid`, until it is answered with success."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            if pid is None:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} does not answer at {url}; see its log")
        time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.create_server(("127.0.0.1", 0)))) for _ in range(count)]
        return [listening.getsockname()[1] for listening in sockets]
