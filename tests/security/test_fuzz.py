"""Every parser against inputs that nobody would write. Which, and what each promises: `tests/security/fuzz`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.fuzz.__main__ import TARGETS

SECONDS = float(os.environ.get("HEADGATE_FUZZ_S", "20"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_hold(name: str) -> None:
    target = TARGETS[name]
    assert target.promise
    assert "\n\n" not in target.promise, "one sentence"
    for seed in target.seeds:
        target.check(seed)


@pytest.mark.rough
def test_no_input_breaks_a_promise() -> None:
    """All targets at once, `HEADGATE_FUZZ_S` seconds together. What breaks one is printed as a command that does it again."""
    command = [sys.executable, "-m", "tests.security.fuzz", "--seconds", str(SECONDS)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS + 60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count(" inputs of ") == len(TARGETS), ran.stdout
