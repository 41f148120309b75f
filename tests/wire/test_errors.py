"""Every error looks the same to a client, and tells it what to do next."""

from __future__ import annotations

import json

import pytest

from gateway import errors
from orchestrator.errors import Failure, HeadgateError, InvalidRequest, RateLimited, Unavailable

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, HeadgateError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_has_an_envelope_and_a_default_message(cls: type[HeadgateError]) -> None:
    error = cls()
    body = json.loads(errors.envelope(error))
    assert body == {"error": {"message": error.message, "type": error.type, "param": None, "code": error.code}}
    assert body["error"]["message"].endswith(".")
    assert errors.envelope(error.failure()) == errors.envelope(error)
    assert errors.headers(error.failure()) == {k: v for k, v in errors.headers(error).items() if k != "allow"}


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES if cls is not HeadgateError]
    assert len(codes) == len(set(codes))


def test_a_wait_is_told_in_seconds_and_milliseconds() -> None:
    assert errors.headers(RateLimited(retry_after_s=0.25)) == {"retry-after": "1", "retry-after-ms": "250"}
    assert errors.headers(errors.RunInProgress()) == {"retry-after": "1", "retry-after-ms": "1000"}
    assert errors.headers(Unavailable(retry_after_s=0)) == {"retry-after": "0", "retry-after-ms": "0"}


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Failure("c", "m", status=500), True),
        (Failure("c", "m", status=409), True),
        (Failure("c", "m", status=429), True),
        (Failure("c", "m", status=502, retryable=True), False),
        (Failure("c", "m", status=429, retryable=True), False),
        (Failure("c", "m", status=400), False),
        (Failure("c", "m", status=404), False),
    ],
)
def test_retrying_is_forbidden_where_an_sdk_would_and_it_cannot_help(failure: Failure, told: bool) -> None:
    assert (errors.headers(failure) == {"x-should-retry": "false"}) is told


def test_401_and_405_have_the_headers_that_http_asks_for() -> None:
    assert errors.headers(errors.Unauthorized()) == {"www-authenticate": "Bearer"}
    assert errors.headers(errors.MethodNotAllowed(allow=("GET", "POST"))) == {"allow": "GET, POST"}


def test_a_lone_surrogate_in_a_message_is_not_another_error() -> None:
    body = errors.envelope(InvalidRequest("no \udcff", param="a\ud800"))
    assert json.loads(body)["error"] == {
        "message": "no ?",
        "type": "invalid_request_error",
        "param": "a?",
        "code": "invalid_request",
    }


def test_native_routes_have_their_own_envelope() -> None:
    body = errors.native_envelope(InvalidRequest("no \udcff", param="p"), "req-1")
    assert json.loads(body) == {"error": {"code": "invalid_request", "message": "no ?", "request_id": "req-1"}}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    assert drawn == {cls.__name__ for cls in CLASSES} - {"HeadgateError"}
