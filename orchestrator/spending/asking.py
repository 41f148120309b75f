"""How long an answer may be: what a request asks for, and how it is told to an upstream. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from orchestrator.spending.meter import STEP
from orchestrator.upstreams.upstream import Call

_LIMITS = ("max_completion_tokens", "max_tokens")


def most_asked(body: Mapping[str, Any]) -> int | None:
    """The most tokens that the answer may have, all its choices together, if the request says so."""
    limits = [body[name] for name in _LIMITS if isinstance(body.get(name), int)]
    return min(limits) * _choices(body) if limits else None


def first_step(body: Mapping[str, Any]) -> int:
    """How much of an answer is paid for before it begins."""
    asked = most_asked(body)
    return STEP if asked is None else min(asked, STEP)


def limited(call: Call, most: int) -> Call:
    """The call with an answer of `most` tokens at most, all choices together.

    The limit takes the field that the request has; one that has none gets OpenAI's present one. A server that does not know it
    is stopped when it has said as much.
    """
    each = max(most // _choices(call.body), 1)
    given = [name for name in _LIMITS if isinstance(call.body.get(name), int)] or _LIMITS[:1]
    return msgspec.structs.replace(call, body={**call.body, **dict.fromkeys(given, each)})


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) and n > 1 else 1
