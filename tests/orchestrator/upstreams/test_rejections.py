"""Errors of upstreams: where servers put the facts, and what a client gets of them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestrator.upstreams.rejections import Scrubber, rejection, retry_after

SCRUB = Scrubber("https://llm.internal:8443/v1", ["sk-secret", "x"])
OVERFLOW = "This model's maximum context length is 4096 tokens. However, you requested 5000."


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            400,
            {"error": {"message": "bad", "type": "invalid_request_error", "param": "messages[0]", "code": "invalid_value"}},
            (400, "invalid_request_error", "invalid_value", "messages[0]", "bad", False),
        ),
        (
            400,
            {"object": "error", "message": "bad", "code": 400},
            (400, "invalid_request_error", "upstream_rejected", None, "bad", False),
        ),
        (
            422,
            {"detail": [{"msg": "field required", "loc": []}]},
            (422, "upstream_error", "upstream_rejected", None, "field required", False),
        ),
        (
            404,
            {"error": "model 'x' not found"},
            (404, "invalid_request_error", "upstream_rejected", None, "model 'x' not found", False),
        ),
        (
            429,
            {"error": {"message": "no money", "code": "insufficient_quota", "type": "insufficient_quota"}},
            (429, "insufficient_quota", "insufficient_quota", None, "no money", False),
        ),
        (500, [{"error": {"message": "oh"}}], (500, "upstream_error", "upstream_rejected", None, "oh", True)),
        (
            503,
            "<html>",
            (503, "upstream_error", "upstream_rejected", None, "The upstream answered with status 503.", True),
        ),
        (599, None, (599, "upstream_error", "upstream_rejected", None, "The upstream answered with status 599.", True)),
        (
            400,
            {"error": {"message": OVERFLOW, "type": "BadRequestError", "code": 400}},
            (400, "BadRequestError", "context_length_exceeded", None, f"{OVERFLOW} (context_length_exceeded)", False),
        ),
        (
            413,
            {"error": {"message": "prompt is too long: 9 tokens > 8", "type": "x"}},
            (400, "x", "context_length_exceeded", None, "prompt is too long: 9 tokens > 8 (context_length_exceeded)", False),
        ),
    ],
)
def test_facts(status: int, body: Any, told: tuple[Any, ...]) -> None:
    error = rejection(status, msgspec.json.encode(body), {}, SCRUB, 0.0)
    assert (error.status, error.type, error.code, error.param, error.message, error.retryable) == told


@pytest.mark.parametrize("status", [401, 403, 407])
def test_our_key_being_refused_is_not_the_clients_401(status: int) -> None:
    error = rejection(status, b'{"error": {"message": "Incorrect API key provided: sk-se***"}}', {}, SCRUB, 0.0)
    assert (error.status, error.code, error.retryable) == (502, "upstream_credentials_refused", False)
    assert error.message == "The upstream refused Headgate's credentials. Check the upstream's `api_key`."


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "2"}, 2.0),
        ({"Retry-After": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"Retry-After": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"Retry-After": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "²"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "inf"}, 86400.0),
        ({"Retry-After": "99999999999"}, 86400.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now_s=60.0) == seconds


def test_a_server_may_say_that_a_retry_is_useless() -> None:
    assert rejection(500, b"", {"x-should-retry": "false"}, SCRUB, 0.0).retryable is False


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("key sk-secret at https://llm.internal:8443/v1/chat", "key [hidden] at [hidden]/chat"),
        ("LLM.internal refused", "[hidden] refused"),
        ("connect to 10.0.0.7:8000 failed", "connect to [address] failed"),
        ("see https://platform.openai.com/docs, version 1.2.3", "see https://platform.openai.com/docs, version 1.2.3"),
        ("x marks my-llm.internal-site", "x marks my-llm.internal-site"),
        ("y" * 5000, "y" * 2000),
    ],
)
def test_scrubbing(text: str, left: str) -> None:
    assert SCRUB(text) == left
