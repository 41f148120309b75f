"""Which requests are repetitions of one another: the `Idempotency-Key` of a request and the digest of what it asks for.

Keys are a tenant's own. What a request asks for is compared as it was understood, so spaces and the order of its fields do not
matter, and headers that change the answer do.

Official SDKs repeat a request by themselves after a lost connection and number the tries in `x-stainless-retry-count`. Where
`runs.sdk_retries` is on, a try after the first is taken for a repetition of the last first try by the same API key with the same
body, although nobody sent an idempotency key.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec
from multidict import MultiMapping

from orchestrator.engine import Idempotency
from orchestrator.errors import InvalidRequest
from orchestrator.runs import Principal

HEADER = "Idempotency-Key"
RETRY_COUNT = "x-stainless-retry-count"

SENT = {HEADER: "1 to 255 visible ASCII characters. A repetition with the same key and request gets the first one's run."}
REPLAYED = {"Idempotency-Replayed": "`true`: an earlier request with this Idempotency-Key has begun the run."}

_KEY = re.compile(r"[!-~]{1,255}")
_COUNT = re.compile(r"[0-9]{1,9}")


def idempotency(headers: MultiMapping[str], principal: Principal, asked: Any, *, sdk_retries: bool = False) -> Idempotency | None:
    """`asked` is the request as it was understood, as plain data or structs. Raises InvalidRequest."""
    keys = headers.getall(HEADER, [])
    if keys:
        if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
            raise InvalidRequest(f"{HEADER} is 1 to 255 visible ASCII characters, and is sent once.", param=HEADER)
        return Idempotency(keys[0], _digest(asked))
    count = headers.get(RETRY_COUNT, "") if sdk_retries else ""
    if not _COUNT.fullmatch(count):
        return None
    digest = _digest(asked)
    return Idempotency(f"retries {principal.key_id} {digest}", digest, anew=int(count) == 0)  # no key has spaces


def _digest(asked: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()
