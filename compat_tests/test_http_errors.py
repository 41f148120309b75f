"""Errors as HTTP: one envelope, the right status, and headers that tell SDKs what to do next."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer, Verbatim
from compat_tests.raw import CHAT, Answer, Raw, ask, script
from compat_tests.served import ALICE, MALLORY, UPSTREAM_SECRET

JSON = {"Content-Type": "application/json"}


def assert_envelope(answer: Answer, status: int, code: str | None, kind: str = "invalid_request_error") -> None:
    """openai.md §1.11, and the request's id as on every response."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json.keys() == {"error"}
    assert answer.json["error"].keys() == {"message", "type", "param", "code"}
    assert (answer.error["code"], answer.error["type"]) == (code, kind)
    assert answer.error["message"]
    assert answer.headers["x-request-id"]


@promise("errors.envelope", "ids.everywhere")
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1", 404, "route_not_found"),
        ("GET", "/v1/", 404, "route_not_found"),
        ("POST", "/v1/embeddings", 404, "route_not_found"),
        ("POST", "/v1/chat/completions/", 404, "route_not_found"),
        ("GET", "/v1/nowhere/%00/..%2f", 404, "route_not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("PUT", f"{CHAT}/task-1/cancel", 405, "method_not_allowed"),
        ("GET", f"{CHAT}/chatcmpl-unknown", 404, "run_not_found"),
        ("GET", f"{CHAT}/task-0190163d-8694-739b-aea5-966c26f8ad91", 404, "run_not_found"),
        ("POST", f"{CHAT}/nonsense/cancel", 404, "run_not_found"),
    ],
)
def test_what_does_not_exist_is_told_in_the_envelope(raw: Raw, method: str, path: str, status: int, code: str) -> None:
    """openai.md §1.11: also what aiohttp would answer as plain text."""
    assert_envelope(raw.send(method, path), status, code)


@promise("errors.key")
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {ALICE}"}, {"Authorization": "Bearer "}],
    ids=["none", "wrong", "other scheme", "empty"],
)
def test_the_key_is_checked_before_the_body(brisk: str, headers: dict[str, str]) -> None:
    """openai.md §1.12, §1.19: 401 `invalid_api_key`, though the body is nonsense."""
    answer = Raw(brisk).send("POST", CHAT, headers={**JSON, **headers}, data=b"nonsense")
    assert_envelope(answer, 401, "invalid_api_key")


@promise("errors.model")
def test_a_model_that_does_not_exist_is_a_404(raw_brisk: Raw) -> None:
    """openai.md §1.12: `model_not_found`, for streams too."""
    for stream in (True, False):
        answer = raw_brisk.chat("no/such/model", "hi", stream=stream)
        assert_envelope(answer, 404, "model_not_found")
        assert answer.error["param"] == "model"


@promise("errors.too-large")
def test_a_body_that_is_too_large_is_a_413(raw_brisk: Raw, raw: Raw) -> None:
    """openai.md §1.11, §2: the limit is a setting; a megabyte is nothing by default."""
    assert_envelope(raw_brisk.chat("demo-none", "x" * 70_000), 413, "body_too_large")
    assert raw.chat("demo-none", script('say "ok"', "#" + "x" * 60_000)).status == 200
    assert raw.chat("demo-none", "x" * 2_000_000).status == 200


@promise("errors.media-type")
def test_another_content_type_is_a_415(raw: Raw) -> None:
    """openai.md §1.11."""
    answer = raw.send("POST", CHAT, headers={"Content-Type": "text/plain"}, data=json.dumps(ask("demo", "hi")).encode())
    assert_envelope(answer, 415, "unsupported_media_type")


@promise("errors.bad-request")
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"model": 7}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"headgate_options": {"evnts": True}}, "headgate_options.evnts"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_place(raw: Raw, change: dict[str, Any], param: str) -> None:
    """openai.md §1.12, §1.19: never a 422."""
    answer = raw.send("POST", CHAT, ask("demo", "hi") | change)
    assert answer.status == 400
    assert answer.error["param"] == param


@promise("errors.bad-request")
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"model": "demo"', b'\xff{"model": "demo"}', b"[" * 100_000, b'{"a": 1e999}'],
)
def test_what_is_no_json_object_is_a_400(raw: Raw, body: bytes) -> None:
    """openai.md §1.19."""
    answer = raw.send("POST", CHAT, headers=JSON, data=body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@promise("errors.characters")
@pytest.mark.parametrize("text", [r"\ud800", r"\udfff tail", r"a\u0000b"])
@pytest.mark.parametrize("place", ["CONTENT", "MODEL", "FIELD"])
def test_lone_surrogates_and_nul_are_a_400(raw: Raw, text: str, place: str) -> None:
    """openai.md §1.19: nothing a client sends becomes a 500."""
    body = json.dumps(ask("MODEL", "CONTENT", field="FIELD")).replace(place, text)
    body = body.replace("MODEL", "demo")
    assert raw.send("POST", CHAT, headers=JSON, data=body.encode()).status == 400


@promise("errors.lenient")
@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "new_kind", "x": 1}]}]},
        {"messages": [{"role": "user", "content": "hi", "name": "ann", "cache_control": {"type": "ephemeral"}}]},
        {"stop": "END"},
        {"stop": ["a", "b"]},
        {"tools": []},
        {"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(128)]},
        {"functions": [{"name": "f"}], "function_call": "auto"},
        dict.fromkeys(("temperature", "stop", "tools", "n", "stream_options", "response_format", "metadata", "user"), None),
        {"max_tokens": 5, "max_completion_tokens": 5},
        {"reasoning_effort": "low", "verbosity": "low", "service_tier": "auto", "store": False, "seed": 1},
        {"logit_bias": {"50256": -100}, "logprobs": True, "top_logprobs": 2, "parallel_tool_calls": False},
        {"metadata": {"a": "b"}, "prompt_cache_key": "k", "safety_identifier": "s", "provider": {"order": ["x"]}},
    ],
)
def test_everything_documented_and_anything_unknown_is_accepted(raw: Raw, model: str, fields: dict[str, Any]) -> None:
    """openai.md §1.14."""
    answer = raw.chat(model, "hi", **fields)
    assert answer.status == 200, answer.body


@promise("errors.upstream-status", "ids.everywhere")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_value", "invalid_request_error"),
        (404, "model_not_found", "invalid_request_error"),
        (422, "unprocessable", "invalid_request_error"),
        (429, "rate_limit_exceeded", "rate_limit_error"),
        (500, "boom", "server_error"),
        (503, "overloaded", "server_error"),
    ],
)
def test_an_upstreams_refusal_keeps_status_code_and_message(
    raw: Raw, model: str, status: int, code: str, kind: str, stream: bool
) -> None:
    """openai.md §1.13, P23: an HTTP error of that class, for streams too, as nothing was sent yet."""
    answer = raw.chat(model, script(f'status {status} code {code} "What it said."'), stream=stream)
    assert_envelope(answer, status, code, kind)
    assert answer.error["message"] == "What it said."
    assert answer.run.startswith("task-")


@promise("errors.retry-headers")
def test_a_rate_limit_says_how_long_to_wait(raw: Raw, model: str) -> None:
    """openai.md §1.12, P23: 429 with `retry-after` and `retry-after-ms`."""
    answer = raw.chat(model, script("status 429 retry-after 7"))
    assert answer.status == 429
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("7", "7000")
    assert "x-should-retry" not in answer.headers


@promise("errors.context-length")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_overflowing_context_stays_recognisable(raw: Raw, model: str, stream: bool) -> None:
    """openai.md §1.13: 400, the code, and those words in the message."""
    said = 'status 400 "This model\'s maximum context length is 8192 tokens."'
    answer = raw.chat(model, script(said), stream=stream)
    assert_envelope(answer, 400, "context_length_exceeded")
    assert "context_length_exceeded" in answer.error["message"]


@promise("errors.secrets")
@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_upstreams_secrets_and_address_stay_inside(raw: Raw, model_server: ModelServer, status: int) -> None:
    """openai.md §1.13."""
    error = {"error": {"message": f"key {UPSTREAM_SECRET} refused by {model_server.base_url}", "code": "no"}}
    answer = raw.chat("verbatim", Verbatim(json.dumps(error), "application/json", status).prompt())
    assert answer.status >= 400
    for secret in (UPSTREAM_SECRET, model_server.base_url, "127.0.0.1"):
        assert secret.encode() not in answer.body


@promise("errors.credentials")
def test_a_key_that_the_upstream_refuses_is_not_the_clients_fault(raw: Raw, wire_model: str) -> None:
    """openai.md §1.13: a 401 would send people to look at the wrong key."""
    answer = raw.chat(wire_model, script("status 401"))
    assert_envelope(answer, 502, "upstream_credentials_refused", "upstream_error")
    assert answer.headers["x-should-retry"] == "false"


@promise("resume.tenant")
def test_another_tenants_run_looks_like_a_missing_one(brisk: str, raw: Raw, raw_brisk: Raw) -> None:
    """design.md §1.8: at every verb."""
    mallory = Raw(brisk, key=MALLORY)
    run = raw.chat("demo-none", script('say "secret"')).run
    assert raw_brisk.resume(run).text == "secret"
    missing = "task-0190163d-8694-739b-aea5-966c26f8ad91"
    for method, path in (("GET", ""), ("GET", "?stream=true"), ("POST", "/cancel")):
        theirs, none = (mallory.send(method, f"{CHAT}/{each}{path}") for each in (run, missing))
        assert (theirs.status, theirs.body) == (none.status, none.body) == (404, none.body)
        assert "x-workflow-id" not in theirs.headers
