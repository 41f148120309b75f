"""Who gave an answer's first output, and at which try, as headers say it. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TOLD = {
    "X-Headgate-Upstream": "The upstream that gave the first output. Not there if the headers had to leave before it.",
    "X-Headgate-Attempt": "Which try that was, from 1.",
}

_NAME = re.compile(r"[!-~]{1,128}")
"""What may stand in a header. A user's own worker may say anything."""


class Served:
    """Told of retries, and of the answering agents' events that may name an upstream, until one of them has."""

    def __init__(self) -> None:
        self.known = False
        self._upstream = ""
        self._attempt = 1

    def again(self) -> None:
        """Another try follows."""
        self._attempt += not self.known

    def by(self, payload: Mapping[str, Any]) -> None:
        """The first delta of a call, or its whole output."""
        upstream = payload.get("upstream")
        if isinstance(upstream, str) and _NAME.fullmatch(upstream):
            self._upstream, self.known = upstream, True

    def headers(self) -> dict[str, str]:
        if not self.known:
            return {}
        return {"X-Headgate-Upstream": self._upstream, "X-Headgate-Attempt": str(self._attempt)}
