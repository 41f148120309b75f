"""Fuzzing by hand, and what the suite starts: every target, or those that are named, at the same time in processes of their own.

python -m tests.security.fuzz [--seconds 20] [--seed 1] [name ...]
python -m tests.security.fuzz --replay BASE64 name
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
import time
import traceback
from collections.abc import Mapping

from tests.security.fuzz import bodies, credentials, plans, streams
from tests.security.fuzz.mutation import Mutation, smaller
from tests.security.fuzz.target import Target

TARGETS: Mapping[str, Target] = {**streams.TARGETS, **bodies.TARGETS, **credentials.TARGETS, **plans.TARGETS}

MAX_POOL = 2000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--replay")
    asked = parser.parse_args()
    names = asked.names or list(TARGETS)
    if asked.replay is not None:
        print(TARGETS[names[0]].check(base64.b64decode(asked.replay)))
        return 0
    print(f"seed {asked.seed}", flush=True)
    until = time.monotonic() + asked.seconds
    children = {_started(name, asked.seed, until): name for name in names}
    broken = []
    while children:
        pid, status = os.wait()
        name = children.pop(pid)
        if status:
            broken.append(name)
    return len(broken)


def _started(name: str, seed: int, until: float) -> int:
    """A process of its own, which gives way to everything else on the machine."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.nice(10)
        code = _fuzz(name, seed, until)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _fuzz(name: str, seed: int, until: float) -> int:
    target = TARGETS[name]
    mutation, tried = Mutation(seed, target.words), 0
    pool, seen = list(target.seeds), {target.check(data) for data in target.seeds}
    while time.monotonic() < until:
        data = mutation.of(pool)
        try:
            outcome = target.check(data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            _report(name, target, data, error)
            return 1
        tried += 1
        if outcome not in seen and len(pool) < MAX_POOL:
            seen.add(outcome)
            pool.append(data)
    print(f"{name}: {tried} inputs of {len(seen)} kinds", flush=True)
    return 0


def _report(name: str, target: Target, data: bytes, error: Exception) -> None:
    def fails(candidate: bytes) -> bool:
        try:
            target.check(candidate)
        except Exception as other:  # noqa: BLE001
            return type(other) is type(error)
        return False

    data = smaller(data, fails)
    how = f"python -m tests.security.fuzz '{name}' --replay {base64.b64encode(data).decode()}"
    print(
        f"BROKEN: {name}: {target.promise}\ninput: {data!r}\nagain: {how}\n{''.join(traceback.format_exception(error))}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
