"""Golden runs: scripts whose streams are cut at every place, and whose bytes, or events, must come back."""

from __future__ import annotations

from typing import Any, NamedTuple

from compat_tests.raw import script
from compat_tests.rules import Asked


class Golden(NamedTuple):
    prompt: str
    fields: dict[str, Any]
    asked: Asked = Asked()


_USAGE = {"stream_options": {"include_usage": True}}

GOLDENS = {
    "text": Golden(script('tokens "Once" " upon" " a" " time"'), {}),
    "usage": Golden(script('tokens "a" "b"', "usage 7 9"), _USAGE, Asked(usage=True)),
    "unicode": Golden(script(r'tokens "h\u00e9" "\ud83d\ude00" "\u2028" "a\u2029\u0085b" "\r\n\n" "" "\ufeff"'), {}),
    "tools": Golden(script('say "Let me see."', 'call get_weather {"city": "Paris"}', "call stop"), _USAGE, Asked(usage=True)),
    "reasoning": Golden(script('reason "Hm, well."', 'say "Yes."'), {}),
    "two choices": Golden(script('tokens "a" "b"'), {"n": 2, **_USAGE}, Asked(usage=True, choices=2)),
    "refusal": Golden(script('refuse "No, thanks."', "finish content_filter"), {}),
    "empty": Golden(script("finish stop"), _USAGE, Asked(usage=True)),
    "length": Golden(script("say 10 words"), {"max_tokens": 3}),
    "padded": Golden(script('tokens "a" "bb"'), {"stream_options": {"include_obfuscation": True}}),
    "events": Golden(script('tokens "a" "b"'), {"headgate_options": {"events": True}}),
    "failing": Golden(script('tokens "a" "b"', "cut"), _USAGE, Asked(usage=True)),
}

UNANSWERED = {
    "refused": Golden(script('status 503 "Not now."'), {}),
    "cancelled": Golden(script('tokens "a" "b"', "hang"), {}),
    "timed out": Golden(script('tokens "a" "b"', "hang"), {}),
}
"""Runs that end in other ways, before their first word or by somebody else's will."""
