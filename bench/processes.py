"""What a server and all its child processes use, read from /proc: CPU seconds and resident memory, by kind of process.

Linux only. A child that ends between two readings takes its CPU time with it; servers keep their children.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_KINDS = {"redis": "redis", "valkey": "redis", "temporal": "temporal", "postgres": "postgres"}


class Use(NamedTuple):
    """Of one kind of process: CPU time so far, and memory now."""

    cpu_s: float = 0.0
    rss_bytes: int = 0

    def plus(self, other: Use) -> Use:
        return Use(self.cpu_s + other.cpu_s, self.rss_bytes + other.rss_bytes)


def usage(roots: Iterable[int]) -> Mapping[str, Use]:
    """Use of these processes and their descendants by kind: python, redis, temporal, postgres."""
    totals: dict[str, Use] = defaultdict(Use)
    for pid in _tree(roots):
        with suppress(OSError):  # it has just ended
            name, _, facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            fields = facts.split()
            use = Use((int(fields[11]) + int(fields[12])) * _TICK_S, int(fields[21]) * _PAGE_BYTES)
            kind = _kind(name.partition("(")[2])
            totals[kind] = totals[kind].plus(use)
    return totals


def total(uses: Mapping[str, Use]) -> Use:
    result = Use()
    for use in uses.values():
        result = result.plus(use)
    return result


def _kind(command: str) -> str:
    return next((kind for prefix, kind in _KINDS.items() if command.startswith(prefix)), "python")


def _tree(roots: Iterable[int]) -> set[int]:
    seen: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in seen:
            seen.add(pid)
            todo += _children(pid)
    return seen


def _children(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (task / "children").read_text().split())


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Processes started in this block, and their children, stay on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
