"""What must not be read in a log: values under names that promise a secret, and the secrets of the configuration. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HIDDEN = "[redacted]"

_SECRET = re.compile(r"token|secret|passw(?:or)?d|passphrase|api[-_ ]?key|authorization|credential|private[-_ ]?key", re.I)
_SHORTEST = 4
"""A secret of fewer characters would be found everywhere."""


class Redactor:
    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= _SHORTEST}, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known)) or r"(?!)")

    def text(self, text: str) -> str:
        """Without the secrets of the configuration."""
        return self._known.sub(HIDDEN, text)

    def value(self, value: Any) -> Any:
        """JSON without them, and without what stands under a secret's name. Counts of tokens are no secrets: numbers stay."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(key): self._under(key, item) for key, item in value.items()}
            case list():
                return [self.value(item) for item in value]
            case _:
                return value

    def _under(self, name: str, value: Any) -> Any:
        if isinstance(value, str | list | dict) and value and _SECRET.search(name):
            return HIDDEN
        return self.value(value)
