"""A real Headgate: `headgate serve` as a child process, configured by a file, found by the address that it announces.

In the shape `split` it is two processes, a gateway and its orchestrator. All tests are the same.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

Shape = Literal["whole", "split"]
SHAPES: tuple[Shape, ...] = get_args(Shape)

UPSTREAM_SECRET = "sk-upstream-canary-secret"
INTERNAL_SECRET = "internal-canary-secret"
ALICE, MALLORY = "key-of-alice", "key-of-mallory"
"""Keys at the server that asks for some. Alice's tenant is the one that everybody has elsewhere; Mallory's is another."""

SECRETS = (UPSTREAM_SECRET, INTERNAL_SECRET, ALICE, MALLORY, "/script", "Bearer")
"""What must not be logged: keys, and prompts, most of which are scripts."""

_ANNOUNCED = re.compile(r"^Headgate.* listens on (http://[^\s,]+\d)")


@contextmanager
def served(config: dict[str, Any], folder: Path, shape: Shape) -> Iterator[str]:
    """Its address. Clients cannot tell its shape."""
    if shape == "whole":
        with _process(config, folder) as url:
            yield url
        return
    between = {"secret": INTERNAL_SECRET, "port": 0}
    with _process({**config, "role": "orchestrator", "orchestrator": between}, folder / "orchestrator") as inside:
        between = {"secret": INTERNAL_SECRET, "urls": [inside]}
        with _process({**config, "role": "gateway", "orchestrator": between}, folder / "gateway") as url:
            yield url


@contextmanager
def _process(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """One process. On leaving it must stop by itself when asked to, and its log must be fit to be read by strangers."""
    folder.mkdir(exist_ok=True)
    file, log = folder / "config.yaml", folder / "stderr.log"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "headgate", "serve", "--config", str(file), "--data", str(folder / "data")]
    with log.open("w") as stderr, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            try:
                code = process.wait(timeout=30)
            finally:
                process.kill()
    assert code == 0, log.read_text()
    _inspect(log.read_text())


def _inspect(log: str) -> None:
    """Nothing that clients or upstreams do is an error of the server's, and what they say is not logged."""
    errors = [line for line in log.splitlines() if '"level":"error"' in line]
    assert not errors, "\n".join(errors)
    assert '"level":"info"' in log, "the log's format has changed, so the line above looks for the wrong thing"
    for private in SECRETS:
        assert private not in log, f"the log has {private}"


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := _ANNOUNCED.search(line):
            return found[1]
    raise AssertionError(f"Headgate did not start:\n{log.read_text()}")
