"""What a request may be. Nothing that a client sends is anything but a request or a 400 that names the place."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.chat_request import ChatRequest, parse_chat_request
from gateway.wire.json_body import MAX_DEPTH, parse_object
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest
from orchestrator.runs import ChatOptions

HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def parse(**fields: Any) -> ChatRequest:
    return parse_chat_request(json.dumps({"model": "m", "messages": HELLO} | fields).encode())


def refusal(raw: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_chat_request(raw)
    assert caught.value.status == 400
    msgspec.json.encode(caught.value.failure())
    return caught.value


def refused(**fields: Any) -> tuple[str | None, str]:
    error = refusal(json.dumps({"model": "m", "messages": HELLO} | fields).encode())
    return error.param, error.code


def test_the_smallest_request() -> None:
    assert parse() == ChatRequest(Submission(model="m", body={"messages": HELLO}))


def test_all_of_a_request() -> None:
    fields: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "stop": ["a"],
        "tools": [],
        "functions": [{"name": "f"}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logit_bias": {"50256": -100},
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "store": False,
        "top_k": 40,
        "chat_template_kwargs": {"enable_thinking": None},
    }
    assert parse(
        **fields,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": True},
        headgate_options={
            "events": True,
            "stream_ids": True,
            "on_disconnect": 5,
            "session_id": "s-1",
            "context": {"a": [1]},
        },
    ) == ChatRequest(
        Submission(
            model="m",
            body={"messages": HELLO} | fields,
            options=ChatOptions(include_usage=True, include_obfuscation=True, events=True, stream_ids=True),
            session_id="s-1",
            metadata={"user": "u", "safety_identifier": "s", "store": False, "context": {"a": [1]}, "a": "b"},
            context={"a": [1]},
        ),
        stream=True,
        on_disconnect=5,
    )


def test_nulls_mean_not_given() -> None:
    names = "stream stream_options headgate_options temperature stop tools tool_choice max_tokens n seed metadata user logprobs"
    names += " response_format logit_bias functions function_call store audio modalities reasoning_effort unknown_field"
    assert parse(**dict.fromkeys(names.split())) == parse()
    assert parse(stream_options={"include_usage": None}, headgate_options={"session_id": None}) == parse()


def test_a_header_can_ask_for_ids() -> None:
    raw = json.dumps({"model": "m", "messages": HELLO}).encode()
    assert parse_chat_request(raw, stream_ids=True).submission.options == ChatOptions(stream_ids=True)


def test_a_header_can_name_the_session_unless_the_body_does() -> None:
    asked = {"model": "m", "messages": HELLO}
    assert parse_chat_request(json.dumps(asked).encode(), session_id="s-1").submission.session_id == "s-1"
    own = json.dumps({**asked, "headgate_options": {"session_id": "s-2"}}).encode()
    assert parse_chat_request(own, session_id="s-1").submission.session_id == "s-2"
    with pytest.raises(InvalidRequest) as refused:
        parse_chat_request(own, session_id="not a session")
    assert refused.value.param == "X-Session-ID"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": "", "name": "bob"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "new", "x": 1}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}, {"type": "file", "file": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL], "refusal": None, "audio": None},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": None},
        {"role": "assistant", "content": "x", "reasoning_content": "hm", "tool_calls": []},
        {"role": "tool", "content": "1", "tool_call_id": "c"},
        {"role": "function", "content": None, "name": "f"},
    ],
)
def test_messages_that_are_messages(message: dict[str, Any]) -> None:
    assert parse(messages=[message]).submission.body["messages"] == [message]


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        (None, "messages", "invalid_type"),
        ("hi", "messages", "invalid_type"),
        ([], "messages", "empty_array"),
        ([None], "messages[0]", "invalid_type"),
        (["hi"], "messages[0]", "invalid_type"),
        ([{"content": "a"}], "messages[0].role", "missing_required_parameter"),
        ([{"role": None, "content": "a"}], "messages[0].role", "invalid_type"),
        ([{"role": [], "content": "a"}], "messages[0].role", "invalid_type"),
        ([{"role": "robot", "content": "a"}], "messages[0].role", "invalid_value"),
        ([*HELLO, {"role": "user"}], "messages[1].content", "missing_required_parameter"),
        ([{"role": "user", "content": None}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": 1}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": {}}], "messages[0].content", "invalid_type"),
        ([{"role": "assistant", "content": None}], "messages[0].content", "invalid_type"),
        ([{"role": "assistant", "content": None, "tool_calls": None}], "messages[0].content", "invalid_type"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]", "invalid_type"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0].type", "missing_required_parameter"),
        ([{"role": "user", "content": [{"type": []}]}], "messages[0].content[0].type", "invalid_type"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0].text", "invalid_type"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "messages[0].content[0].image_url",
            "invalid_type",
        ),
        ([{"role": "user", "content": "a", "name": 1}], "messages[0].name", "invalid_type"),
        ([{"role": "tool", "content": "a"}], "messages[0].tool_call_id", "missing_required_parameter"),
        ([{"role": "function", "content": "a"}], "messages[0].name", "missing_required_parameter"),
        ([{"role": "assistant", "content": "a", "tool_calls": {}}], "messages[0].tool_calls", "invalid_type"),
        ([{"role": "assistant", "tool_calls": ["f"]}], "messages[0].tool_calls[0]", "invalid_type"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}],
            "messages[0].tool_calls[0].function.arguments",
            "invalid_type",
        ),
    ],
)
def test_messages_that_are_not(messages: Any, param: str, code: str) -> None:
    assert refused(messages=messages) == (param, code)


@pytest.mark.parametrize(
    ("field", "value", "param", "code"),
    [
        ("model", None, "model", "invalid_type"),
        ("model", "", "model", "invalid_value"),
        ("stream", "true", "stream", "invalid_type"),
        ("stream", 1, "stream", "invalid_type"),
        ("stream_options", {"include_usage": "x"}, "stream_options.include_usage", "invalid_type"),
        ("temperature", 2.1, "temperature", "invalid_value"),
        ("temperature", True, "temperature", "invalid_type"),
        ("temperature", 10**400, "temperature", "invalid_type"),
        ("top_p", -0.1, "top_p", "invalid_value"),
        ("presence_penalty", -3, "presence_penalty", "invalid_value"),
        ("max_tokens", 0, "max_tokens", "invalid_value"),
        ("max_tokens", "5", "max_tokens", "invalid_type"),
        ("max_completion_tokens", 2**63, "max_completion_tokens", "invalid_value"),
        ("n", 129, "n", "invalid_value"),
        ("seed", 2**64, "seed", "invalid_value"),
        ("seed", 1.5, "seed", "invalid_type"),
        ("stop", 1, "stop", "invalid_type"),
        ("stop", ["a", 1], "stop[1]", "invalid_type"),
        ("logit_bias", {"1": 101}, "logit_bias.1", "invalid_value"),
        ("top_logprobs", 21, "top_logprobs", "invalid_value"),
        ("tools", {}, "tools", "invalid_type"),
        ("tools", [{"type": "function", "function": {}}], "tools[0].function.name", "missing_required_parameter"),
        ("tools", [{"function": {"name": "f"}}], "tools[0].type", "missing_required_parameter"),
        ("tool_choice", "sometimes", "tool_choice", "invalid_value"),
        ("response_format", "json", "response_format", "invalid_type"),
        ("metadata", {"a": 1}, "metadata.a", "invalid_type"),
        ("metadata", {"a": "x" * 513}, "metadata.a", "invalid_value"),
        ("metadata", {str(number): "" for number in range(17)}, "metadata", "invalid_value"),
        ("user", 5, "user", "invalid_type"),
        ("headgate_options", {"evnets": True}, "headgate_options.evnets", "unknown_parameter"),
        ("headgate_options", {"on_disconnect": "explode"}, "headgate_options.on_disconnect", "invalid_value"),
        ("headgate_options", {"on_disconnect": -1}, "headgate_options.on_disconnect", "invalid_value"),
        ("headgate_options", {"session_id": "a\r\nb"}, "headgate_options.session_id", "invalid_value"),
        ("headgate_options", {"context": []}, "headgate_options.context", "invalid_type"),
        ("headgate_options", {"context": {"a": "x" * 20_000}}, "headgate_options.context", "too_long"),
    ],
)
def test_fields_of_a_wrong_type_or_range(field: str, value: Any, param: str, code: str) -> None:
    assert refused(**{field: value}) == (param, code)


def test_a_hundred_and_twenty_eight_tools() -> None:
    tools = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(128)]
    assert parse(tools=tools).submission.body["tools"] == tools


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b"[]",
        b'"x"',
        b"null",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b'{"model": "\xff"}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\xc0\x80"}',
        b'{"model": "\\ud800"}',
        b'{"model": "\\udc00"}',
        b'{"model": "\\ud800\\u0041"}',
        b'{"\\ud800": 1}',
        b'{"model": "\0"}',
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b'{"model": 1e999}',
        b'{"model": ' + b"9" * 5000 + b"}",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"a":' * 300 + b"1" + b"}" * 300,
        b'{"x": ' + b"[" * 10_000,
    ],
)
def test_bytes_that_are_not_a_request(raw: bytes) -> None:
    assert refusal(raw).code == "invalid_json"


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        (b'{"model": "m\\u0000", "messages": []}', "model"),
        (b'{"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "\\u0000"}]}]}', None),
        (b'{"model": "m", "a": {"\\u0000": 1}}', "a"),
        (b'{"\\u0000": 1}', None),
    ],
)
def test_nul_is_refused_wherever_it_hides(raw: bytes, param: str | None) -> None:
    """PostgreSQL cannot hold it, so it would become a 500 long after the request."""
    assert refusal(raw).param == (param or ("messages[0].content[0].text" if b"text" in raw else None))


def test_an_escaped_backslash_is_not_nul() -> None:
    assert parse_object(b'{"a": "\\\\u0000"}') == {"a": "\\u0000"}


def test_nesting_up_to_the_limit() -> None:
    depth = MAX_DEPTH - 1
    assert parse_object(b'{"a":' + b"[" * depth + b"]" * depth + b"}")
    with pytest.raises(InvalidRequest):
        parse_object(b'{"a":' + b"[" * (depth + 1) + b"]" * (depth + 1) + b"}")


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = "model messages stream stream_options headgate_options stop tools tool_choice response_format metadata n seed logit_bias"
MESSAGE = "role content name tool_calls function_call refusal tool_call_id"


def mangled(keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys.split()), json_values, max_size=4)


@given(
    fields=mangled(FIELDS),
    message=mangled(MESSAGE),
    role=st.sampled_from(["user", "assistant", "tool", "function", "x"]),
    option=mangled("events stream_ids on_disconnect session_id context"),
)
def test_no_json_becomes_another_exception(
    fields: dict[str, Any], message: dict[str, Any], role: str, option: dict[str, Any]
) -> None:
    body = {"model": "m", "messages": [{"role": role} | message], "headgate_options": option} | fields
    accepted_or_400(json.dumps(body).encode("utf-8", "surrogatepass"))


@given(raw=st.binary(max_size=60), at=st.integers(0, 80))
def test_no_bytes_become_another_exception(raw: bytes, at: int) -> None:
    whole = b'{"model":"m","messages":[{"role":"user","content":"Hello \\ud83d\\ude00"}],"stop":["a"],"n":1}'
    accepted_or_400(raw)
    accepted_or_400(whole[:at] + raw + whole[at:])
    accepted_or_400(whole[:at] + raw + whole[at + len(raw) :])


def accepted_or_400(raw: bytes) -> None:
    """Whatever is accepted can be stored and forwarded; whatever is refused can be told."""
    try:
        request = parse_chat_request(raw)
    except InvalidRequest as refused:
        msgspec.json.encode(refused.failure())
    else:
        assert b"\\u0000" not in msgspec.json.encode(request.submission).replace(b"\\\\", b"")
