"""What answers and refusals say of limits per minute, as the API's description tells it. The headers are made in
`orchestrator.limits.headers`.
"""

from __future__ import annotations

from collections.abc import Mapping

RATE_LIMITS: Mapping[str, str] = {
    "x-ratelimit-limit-requests": "Only where there is such a limit: how many requests a minute. The same with `-tokens`.",
    "x-ratelimit-remaining-requests": "How many more are let through now.",
    "x-ratelimit-reset-requests": "After how long without any the limit is as good as new: `12ms`, `1s`, `6m0s`.",
    "x-ratelimit-limit-tokens": "Tokens of prompts and answers.",
    "x-ratelimit-remaining-tokens": "Estimated for runs that go on.",
    "x-ratelimit-reset-tokens": "As of requests.",
}
