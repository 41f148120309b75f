"""What an upstream's error means for the client: status, code, param and message kept, secrets and addresses taken out."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from orchestrator.upstreams.upstream import UpstreamGarbled, UpstreamRejected

_MAX_MESSAGE = 2000
_ADDRESS = re.compile(r"(?<![0-9])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])(?::[0-9]{1,5})?")
_WORD = re.compile(r"[A-Za-z0-9_.\[\]:/-]{1,100}")
_OVERFLOW = re.compile(
    r"context[ _](?:length|window|size)|prompt is too long|input is too long|exceeds? the (?:available |maximum )?context", re.I
)
_STATUS_OF = {
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "insufficient_quota": 429,
    "context_length_exceeded": 400,
    "invalid_request_error": 400,
    "BadRequestError": 400,
    "overloaded_error": 503,
    "service_unavailable": 503,
}
"""The status of an error that came inside an answer, where none is given, by its code or type."""

_TYPE_OF = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}


class Scrubber:
    """Takes the upstream's secrets and addresses out of text that it wrote."""

    def __init__(self, base_url: str, secrets: Iterable[str]) -> None:
        url = urlsplit(base_url)
        names = [base_url, url.netloc, url.hostname or ""]
        patterns = [re.escape(secret) for secret in secrets if len(secret) >= 4]
        patterns += [rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in names if name]
        self._pattern = re.compile("|".join(sorted(patterns, key=len, reverse=True)) or r"(?!)", re.I)

    def __call__(self, text: str) -> str:
        text = self._pattern.sub("[hidden]", text)
        return _ADDRESS.sub("[address]", text)[:_MAX_MESSAGE]


def rejection(status: int, body: bytes, headers: Mapping[str, str], scrub: Scrubber, now_s: float) -> UpstreamRejected:
    """The error for a response with an error status. `headers` are looked up without regard to case by their owner."""
    error = _rejected(status, _facts(body), scrub)
    error.retry_after_s = retry_after(headers, now_s)
    if headers.get("x-should-retry") == "false":
        error.retryable = False
    return error


def reported(data: bytes, scrub: Scrubber) -> UpstreamRejected | UpstreamGarbled:
    """The error for an answer that started with 200 and turned out to be, or to contain, an error object."""
    facts = _facts(data)
    status = next(
        (
            int(code)
            for code in (facts.get("status"), facts.get("code"), facts.get("http_code"))
            if isinstance(code, int | str) and str(code).isascii() and str(code).isdigit() and 400 <= int(code) <= 599
        ),
        None,
    )
    if status is None:
        status = _STATUS_OF.get(str(facts.get("code"))) or _STATUS_OF.get(str(facts.get("type"))) or 502
    return _rejected(status, facts, scrub)


def retry_after(headers: Mapping[str, str], now_s: float) -> float | None:
    """Seconds to wait: `retry-after-ms`, else `Retry-After` as seconds or as a date (RFC 9110, section 10.2.3)."""
    try:
        if (ms := headers.get("retry-after-ms")) is not None:
            return _bounded(float(ms) / 1000)
        if (value := headers.get("Retry-After")) is None:
            return None
        if value.strip().replace(".", "", 1).isdigit():
            return _bounded(float(value))
        return _bounded(email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None


def _rejected(status: int, facts: Mapping[str, Any], scrub: Scrubber) -> UpstreamRejected:
    if status in (401, 403, 407):
        # The key that was refused is ours. As the client's 401 it would send people to look at the wrong key.
        return UpstreamRejected(
            "The upstream refused Headgate's credentials. Check the upstream's `api_key`.",
            code="upstream_credentials_refused",
            retryable=False,
        )
    message = scrub(_text(facts.get("message")) or f"The upstream answered with status {status}.")
    code = _word(facts.get("code"), scrub)
    if 400 <= status < 500 and (code == "context_length_exceeded" or _OVERFLOW.search(f"{code} {facts.get('type')} {message}")):
        status, code = 400, "context_length_exceeded"
        if "context_length_exceeded" not in message:
            message = f"{message} (context_length_exceeded)"
    return UpstreamRejected(
        message,
        status=status if 400 <= status <= 599 else 502,
        type=_word(facts.get("type"), scrub) or _TYPE_OF.get(status) or "upstream_error",
        code=code or ("rate_limit_exceeded" if status == 429 else None),
        param=_word(facts.get("param"), scrub),
        retryable=(status in (408, 409, 429) or status >= 500) and code != "insufficient_quota",
    )


def _facts(body: bytes) -> Mapping[str, Any]:
    """The error object, wherever servers put it: `error`, `detail` (FastAPI), or at the top; bare text as its message."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {}
    inner = value.get("error") or value.get("detail")
    if isinstance(inner, dict):
        return inner
    if isinstance(inner, str):
        return {**value, "message": inner}
    if isinstance(inner, list):
        return {
            **value,
            "message": "; ".join(str(item.get("msg", item)) if isinstance(item, dict) else str(item) for item in inner),
        }
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _word(value: Any, scrub: Scrubber) -> str | None:
    """A code, type or param: a name, and no text that could quote a prompt, because codes go where prompts must not (Temporal's
    histories, logs). Numbers are dropped, the status says the same.
    """
    return scrub(value) if isinstance(value, str) and _WORD.fullmatch(value) and not value.isdigit() else None
