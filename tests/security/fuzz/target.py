"""What is fuzzed: a parser, and the one sentence that no input may make untrue."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """`check` raises when the sentence in its docstring is broken. What it returns tells kinds of inputs apart: one that makes it
    return something new is kept, to be changed further.
    """

    check: Callable[[bytes], Hashable]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()
    """What the parser's language is made of."""

    @property
    def promise(self) -> str:
        return (self.check.__doc__ or "").strip()
