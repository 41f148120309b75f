"""How the command writes: answers to standard output, everything about them to standard error, colour only for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import msgspec

from gateway.wire import sse

DIM, RED, BOLD = "2", "31", "1"

_FACT = 12
"""How wide the names of facts are."""

_CONTROLS = dict.fromkeys([*range(32), 127, *range(128, 160)]) | {ord(kept): kept for kept in "\n\t"}


def styled(text: str, style: str, stream: TextIO) -> str:
    """`text` in a style, if `stream` is a terminal whose user has not asked for none (https://no-color.org)."""
    return f"\x1b[{style}m{text}\x1b[0m" if stream.isatty() and not os.environ.get("NO_COLOR") else text


def tame(text: str, stream: TextIO) -> str:
    """`text` without what would command a terminal: what a model says must not move the cursor or set the window's title."""
    return text.translate(_CONTROLS) if stream.isatty() else text


def note(text: str) -> None:
    """Something about the answer."""
    print(styled(tame(text, sys.stderr), DIM, sys.stderr), file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Something went wrong."""
    print(styled("headgate: ", RED, sys.stderr) + tame(text, sys.stderr), file=sys.stderr, flush=True)


def print_json(item: Any) -> None:
    """One line, for programs, also for those whose lines end at U+2028."""
    sys.stdout.write(sse.escape(msgspec.json.encode(item)).decode() + "\n")
    sys.stdout.flush()


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; the last one is cut where a terminal's line ends."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    room = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    for row in (heads, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        line = tame(line.replace("\n", " "), sys.stdout)[:room]
        print(styled(line, BOLD, sys.stdout) if row is heads else line)


def print_facts(facts: Sequence[tuple[str, str | None]]) -> None:
    """One fact per line, its further lines below each other; those that are not known are left out."""
    for name, value in facts:
        if value is not None:
            lines = tame(value, sys.stdout).replace("\n", "\n" + " " * _FACT)
            print(styled(f"{name}:".ljust(_FACT), DIM, sys.stdout) + lines)
