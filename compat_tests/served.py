"""A real Headgate: `headgate serve` as a child process, configured by a file, found by the address that it announces."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ANNOUNCED = re.compile(r"Headgate listens on (http://\S+)\. ")


@contextmanager
def served(config: dict[str, Any], folder: Path) -> Iterator[str]:
    """Its address. On leaving it must stop by itself when asked to, having logged no error: nothing a client does is one."""
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
    errors = [line for line in log.read_text().splitlines() if '"level":"error"' in line.replace(" ", "")]
    assert not errors, "\n".join(errors)


def _address(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := _ANNOUNCED.search(line):
            return found[1]
    raise AssertionError(f"Headgate did not start:\n{log.read_text()}")
