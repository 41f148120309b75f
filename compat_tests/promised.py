"""What a promise is: see `manifest.py`."""

from __future__ import annotations

from typing import NamedTuple


class Promised(NamedTuple):
    what: str
    source: str
    """Of the contract of the OpenAI doors: a section, rules in brackets. Of that of the native ones: `native` and a section.
    Or a promise of the project (P1 ...), or its design."""
