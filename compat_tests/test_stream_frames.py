"""Whole streams, frame by frame, as they are on the wire of the chat door."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer, Verbatim
from compat_tests.raw import CHAT, Answer, Raw, ask, headers_of, script, take_frames
from compat_tests.rules import Asked, complaints

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


def chunk(answer: Answer, index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk as it must be; what belongs to the run is taken from its first chunk."""
    head = {key: answer.chunks[0][key] for key in ("id", "object", "created", "model")}
    return {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def of_run(answer: Answer) -> str:
    return "chatcmpl-" + answer.run.removeprefix("task-")


@promise("chat.role-once", "chat.constants", "chat.finish-once", "chat.choice-shape", "chat.done")
def test_a_text_is_role_then_deltas_then_finish_then_done(raw: Raw, model: str) -> None:
    """openai.md §1.1, §1.2, §1.3, §1.7: the whole stream of three words."""
    answer = raw.chat(model, script('tokens "One" " two" " three"'))
    assert answer.chunks == [
        chunk(answer, role="assistant"),
        chunk(answer, content="One"),
        chunk(answer, content=" two"),
        chunk(answer, content=" three"),
        chunk(answer, finish="stop"),
    ]
    first = answer.chunks[0]
    assert (first["id"], first["object"], first["model"]) == (of_run(answer), "chat.completion.chunk", model)
    assert answer.stream == b"".join(b"data: " + _compact(each) + b"\n\n" for each in answer.chunks) + b"data: [DONE]\n\n"
    assert complaints(answer.body) == []


def _compact(chunk: dict[str, Any]) -> bytes:
    return json.dumps(chunk, separators=(",", ":"), ensure_ascii=False).encode()


@promise("chat.usage-last", "chat.done")
def test_usage_comes_in_exactly_the_last_chunk_when_it_is_asked_for(raw: Raw, model: str) -> None:
    """openai.md §1.4: exactly one chunk, the last, with no choices; the others carry null."""
    answer = raw.chat(model, script('tokens "a" "b"', "usage 7 9"), **USAGE)
    assert [each["usage"] for each in answer.chunks[:-1]] == [None] * 4
    usage = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
    assert answer.chunks[-1] == {**chunk(answer), "choices": [], "usage": usage}
    assert complaints(answer.body, Asked(usage=True)) == []


@promise("chat.usage-unasked")
@pytest.mark.parametrize("fields", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_usage_stays_away_when_it_is_not_asked_for(raw: Raw, model: str, fields: dict[str, Any]) -> None:
    """openai.md §1.4: unasked, naive clients index `choices[0]` and crash."""
    answer = raw.chat(model, script('say "hi"', "usage 7 9"), **fields)
    assert not any("usage" in each for each in answer.chunks)
    assert complaints(answer.body) == []


@promise("chat.tool-deltas", "chat.finish-tool-calls")
def test_two_tool_calls_come_one_after_the_other(raw: Raw, model: str) -> None:
    """openai.md §1.5, §1.6: index always; id, type and name once; one tool per chunk."""
    answer = raw.chat(model, script('call get_weather {"city": "Paris"}', "call stop_rain"))
    deltas = [each["choices"][0]["delta"] for each in answer.chunks[1:-1]]
    assert all(delta.keys() == {"tool_calls"} for delta in deltas)
    calls = [delta["tool_calls"][0] for delta in deltas]
    heads = [call for call in calls if "id" in call]
    assert [(call["index"], call["type"], call["function"]) for call in heads] == [
        (0, "function", {"name": "get_weather", "arguments": ""}),
        (1, "function", {"name": "stop_rain", "arguments": ""}),
    ]
    assert [call["index"] for call in calls] == sorted(call["index"] for call in calls)
    said = ["".join(call["function"]["arguments"] for call in calls if call["index"] == index) for index in (0, 1)]
    assert said == ['{"city": "Paris"}', "{}"]
    assert answer.chunks[-1] == chunk(answer, finish="tool_calls")
    assert complaints(answer.body) == []


@promise("chat.finish-tool-calls")
def test_an_upstream_that_says_stop_after_tool_calls_is_corrected(raw: Raw, model: str) -> None:
    """openai.md §1.6: `tool_calls` whenever tool calls were emitted."""
    answer = raw.chat(model, script('say "Let me see."', "call look", "finish stop"))
    assert answer.chunks[-1] == chunk(answer, finish="tool_calls")


@promise("chat.finish-known")
@pytest.mark.parametrize(
    ("said", "means"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), ("max_tokens", "length")],
)
def test_only_the_known_finish_reasons_leave(raw: Raw, model: str, said: str, means: str) -> None:
    """openai.md §1.6: others are mis-handled by nearly everyone."""
    answer = raw.chat(model, script('say "well"', f"finish {said}"))
    assert answer.chunks[-1] == chunk(answer, finish=means)


@promise("chat.n-choices", "chat.role-once", "chat.finish-once")
def test_each_of_several_choices_has_its_own_role_and_finish(raw: Raw, model: str) -> None:
    """openai.md §1.7: choice 0 first, a role chunk and a finish for each."""
    answer = raw.chat(model, script('tokens "a" "b"'), n=3, **USAGE)
    choices = [each["choices"][0] for each in answer.chunks[:-1]]
    for index in range(3):
        mine = [choice for choice in choices if choice["index"] == index]
        assert [choice["delta"] for choice in mine] == [{"role": "assistant"}, {"content": "a"}, {"content": "b"}, {}]
        assert [choice["finish_reason"] for choice in mine] == [None, None, None, "stop"]
    assert complaints(answer.body, Asked(usage=True, choices=3)) == []


@promise("chat.reasoning")
def test_reasoning_has_both_names(raw: Raw, model: str) -> None:
    """openai.md §1.17: `reasoning_content` and `reasoning`."""
    answer = raw.chat(model, script('reason "Hm."', 'say "Yes."'))
    assert answer.chunks[1:3] == [chunk(answer, reasoning_content="Hm.", reasoning="Hm."), chunk(answer, content="Yes.")]
    assert complaints(answer.body) == []


@promise("chat.refusal")
def test_a_refusal_is_streamed_as_one(raw: Raw, model: str) -> None:
    """openai.md §4: refusal deltas."""
    answer = raw.chat(model, script('refuse "No, thanks."'))
    assert "".join(each["choices"][0]["delta"]["refusal"] for each in answer.chunks[1:-1]) == "No, thanks."
    assert complaints(answer.body) == []


@promise("chat.empty")
def test_an_answer_without_words_is_still_a_whole_stream(raw: Raw, model: str) -> None:
    """openai.md §1.1, §1.3: role, an empty text, finish, done."""
    answer = raw.chat(model, script("finish stop"))
    assert answer.chunks == [chunk(answer, role="assistant"), chunk(answer, content=""), chunk(answer, finish="stop")]
    assert complaints(answer.body) == []


@promise("chat.line-separators")
def test_characters_that_end_lines_for_some_readers_are_escaped(raw: Raw, model: str) -> None:
    """openai.md §1.20: U+2028, U+2029 and U+0085 break every reader built on `splitlines`."""
    text = "a\u2028b\u2029c\u0085d\r\ne\x0b\x0c\x1c\x1d\x1ef \U0001f600 \ufeff"
    answer = raw.chat(model, script(f"tokens {json.dumps(text)}"))
    assert answer.text == text
    assert not any(each.encode() in answer.body for each in "\u2028\u2029\u0085")
    assert complaints(answer.body) == []


@promise("chat.no-ids", "chat.ids")
@pytest.mark.parametrize(
    "asking",
    [{"headers": {"X-Headgate-Stream-Ids": "true"}}, {"headgate_options": {"stream_ids": True}}],
    ids=["header", "option"],
)
def test_events_have_ids_only_when_they_are_asked_for(raw: Raw, model: str, asking: dict[str, Any]) -> None:
    """openai.md §1.9."""
    prompt = script('tokens "a" "b"')
    assert b"id:" not in raw.chat(model, prompt).body
    answer = raw.chat(model, prompt, **asking)
    with_ids = [b"\n" in frame.removesuffix(b"\n\n") for frame in answer.frames]
    assert with_ids == [False, True, True, True, False]  # the role has its delta's event; [DONE] is none
    positions = [tuple(map(int, each.id.split("-"))) for each in answer.events if each.id]
    assert positions == sorted(positions)
    assert complaints(answer.body, Asked(ids=True)) == []


@promise("chat.headers")
@pytest.mark.parametrize("accept", ["gzip", "gzip, deflate, br, zstd", "identity;q=0, *"])
def test_a_stream_is_never_compressed_cached_or_buffered(raw: Raw, accept: str) -> None:
    """openai.md §1.15."""
    answer = raw.chat("demo-none", script("say 50 words"), headers={"Accept-Encoding": accept})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in answer.headers
    assert complaints(answer.body) == []


@promise("chat.done")
def test_the_body_ends_with_done_and_the_connection_serves_on(raw: Raw, model: str) -> None:
    """openai.md §1.3: a body that lingers costs Python clients their connection."""
    with raw.connection() as connection:
        connection.connect()
        socket = connection.sock
        for word in ("one", "two", "three"):
            body = json.dumps(ask(model, script(f'say "{word}"'), stream=True))
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                answer = Answer(response.status, headers_of(response), response.read())
            assert (answer.text, complaints(answer.body)) == (word, [])
            assert connection.sock is socket


@promise("chat.keepalive")
def test_silence_is_filled_with_comments_of_one_line(raw_brisk: Raw, model: str) -> None:
    """openai.md §1.8: with a blank line after it, openai-python would parse an empty event."""
    answer = raw_brisk.chat(model, script('say "a"', "wait 350ms", 'say "b"'), headers={"X-Headgate-Stream-Ids": "true"})
    before, after = answer.body.split(b'b"}')[0], answer.body.split(b'b"}')[1]
    assert 1 <= before.count(b": keepalive\n") <= 4
    assert b"keepalive" not in after
    assert (answer.text, complaints(answer.body, Asked(ids=True))) == ("ab", [])


@promise("chat.hold")
def test_headers_do_not_wait_for_a_slow_first_word(raw_brisk: Raw, mark: str, wire_model: str, model_server: ModelServer) -> None:
    """openai.md §1.10: headers wait for the first output, an ending, or 2 s (0.2 s at this server)."""
    prompt = script("hang", mark)
    with raw_brisk.open("POST", CHAT, ask(wire_model, prompt, stream=True)) as response:
        assert response.status == 200
        assert response.readline() == b": keepalive\n"
    assert model_server.ending(prompt) == "cancelled"


@promise("chat.hold", "errors.before-output", "errors.in-band")
def test_a_failure_within_the_wait_is_a_status_and_after_it_an_event(raw: Raw, raw_brisk: Raw, model: str) -> None:
    """openai.md §1.10: 0.4 s is within 2 s, and beyond 0.2 s."""
    prompt = script("wait 400ms", "status 503 code busy")
    held, begun = raw.chat(model, prompt), raw_brisk.chat(model, prompt)
    assert (held.status, held.error["code"]) == (503, "busy")
    assert (begun.status, begun.error, complaints(begun.body)) == (200, held.error, [])


@promise("chat.unbuffered")
@pytest.mark.parametrize("fields", [{}, {"tools": [{"type": "function", "function": {"name": "f"}}]}], ids=["plain", "tools"])
def test_a_word_leaves_when_it_comes_and_not_with_the_next(raw: Raw, mark: str, model: str, fields: dict[str, Any]) -> None:
    """openai.md §1.15: never buffer, also not because tools are present. The second word never comes."""
    with raw.open("POST", CHAT, ask(model, script('say "first"', "hang", mark), stream=True, **fields)) as response:
        role, word = take_frames(response, 2)
    assert b'"role":"assistant"' in role
    assert b'"content":"first"' in word


@promise("chat.events")
def test_the_runs_own_events_are_shown_when_they_are_asked_for(raw: Raw, model: str) -> None:
    """openai.md §4: an empty delta that carries them; what the answer says is the same."""
    answer = raw.chat(model, script('say "hi"'), headgate_options={"events": True})
    kinds = [event["type"] for each in answer.chunks for event in each.get("headgate_events", ())]
    assert kinds == ["WORKFLOW_STARTED", "AGENT_STARTED", "AGENT_COMPLETED"]
    assert (answer.text, complaints(answer.body)) == ("hi", [])


@promise("chat.obfuscation")
def test_obfuscation_pads_and_changes_nothing_else(raw: Raw, model: str) -> None:
    """openai.md §2: `include_obfuscation`."""
    prompt = script('tokens "a" "bb" "ccc"')
    plain = raw.chat(model, prompt)
    padded = raw.chat(model, prompt, stream_options={"include_obfuscation": True})
    assert [each.get("obfuscation") is not None for each in padded.chunks] == [False, True, True, True, False]
    assert padded.text == plain.text
    assert complaints(padded.body) == []


@promise("chat.whole")
def test_an_answer_that_is_not_streamed_is_one_object(raw: Raw, model: str) -> None:
    """openai.md §3: message, finish reason and usage, always with usage."""
    prompt = script('reason "Hm."', 'say "Let me see."', 'call f {"a": 1}', "usage 3 4")
    answer = raw.chat(model, prompt, stream=False)
    body = answer.json
    (call,) = body["choices"][0]["message"].pop("tool_calls")
    assert body == {
        "id": of_run(answer),
        "object": "chat.completion",
        "created": body["created"],
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "Let me see.",
                    "refusal": None,
                    "reasoning_content": "Hm.",
                    "reasoning": "Hm.",
                },
                "logprobs": None,
                "finish_reason": "tool_calls",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
    }
    assert (call["type"], call["function"]) == ("function", {"name": "f", "arguments": '{"a": 1}'})
    assert answer.headers["content-type"].startswith("application/json")


@promise("chat.whole")
def test_a_whole_answer_says_what_the_stream_adds_up_to(raw: Raw, model: str) -> None:
    """openai.md §3: non-streaming requests follow the same run."""
    prompt = script("seed 5", "say 40 words")
    assert raw.chat(model, prompt, stream=False).json["choices"][0]["message"]["content"] == raw.chat(model, prompt).text


@promise("upstream.request")
def test_fields_that_only_the_upstream_knows_reach_it_verbatim(
    raw: Raw, mark: str, wire_model: str, model_server: ModelServer
) -> None:
    """openai.md §1.14: vLLM, OpenRouter and Qwen users depend on them. Ours, and nulls, stay here."""
    sent: dict[str, Any] = {
        "top_k": 40,
        "guided_json": {"type": "object"},
        "enable_thinking": False,
        "temperature": 0,
        "tools": [],
    }
    ours: dict[str, Any] = {"headgate_options": {"session_id": "s-1"}, "stop": None, "stream_options": None}
    prompt = script('say "ok"', mark)
    assert raw.chat(wire_model, prompt, **sent, **ours).status == 200
    assert model_server.asked(prompt).body == {
        "messages": [{"role": "user", "content": prompt}],
        **sent,
        "model": wire_model,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@promise("upstream.prefix")
def test_what_follows_the_slash_of_a_prefix_goes_upstream(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """design.md §4: `local/*`, and `*` with the name unchanged."""
    for asked, upstream in (("wire/some/model:7b", "some/model:7b"), ("anything-else", "anything-else")):
        prompt = script('say "ok"', mark, f"# {asked}")
        assert raw.chat(asked, prompt).chunks[0]["model"] == asked
        assert model_server.asked(prompt).model == upstream


@promise("upstream.developer")
def test_the_developer_is_called_system_where_upstreams_are_old(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """openai.md §1.14: for upstreams marked so, and for no others."""
    for model, role in (("old", "system"), ("wire", "developer")):
        prompt = script('say "ok"', mark, f"# {model}")
        messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": prompt}]
        assert raw.chat(model, prompt, messages=messages).status == 200
        assert model_server.asked(prompt).body["messages"][0] == {"role": role, "content": "Be brief."}


@promise("upstream.passed")
def test_logprobs_a_function_call_and_token_details_are_passed_on(raw: Raw) -> None:
    """openai.md §1.6, §3, §4: what is not text, streamed and whole."""
    logprobs = {"content": [{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}], "refusal": None}
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 5,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 8},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    said: list[dict[str, Any]] = [
        {"delta": {"role": "assistant", "content": "Hi"}, "logprobs": logprobs},
        {"delta": {"function_call": {"name": "f", "arguments": "{"}}},
        {"delta": {"function_call": {"arguments": "}"}}},
        {"delta": {}, "finish_reason": "function_call"},
    ]
    chunks = [*({"choices": [{"index": 0, **each}]} for each in said), {"choices": [], "usage": usage}]
    prompt = Verbatim("".join(f"data: {json.dumps(each)}\n\n" for each in chunks) + "data: [DONE]\n\n").prompt()
    answer = raw.chat("verbatim", prompt, **USAGE)
    assert [
        (each["delta"], each["logprobs"], each["finish_reason"]) for (each,) in (c["choices"] for c in answer.chunks[:-1])
    ] == [
        ({"role": "assistant"}, None, None),
        ({"content": "Hi"}, logprobs, None),
        ({"function_call": {"name": "f", "arguments": "{"}}, None, None),
        ({"function_call": {"arguments": "}"}}, None, None),
        ({}, None, "function_call"),
    ]
    assert answer.chunks[-1]["usage"] == usage
    assert complaints(answer.body, Asked(usage=True)) == []
    whole = raw.chat("verbatim", prompt, stream=False).json
    (choice,) = whole["choices"]
    assert choice["message"]["function_call"] == {"name": "f", "arguments": "{}"}
    assert (choice["message"]["content"], choice["logprobs"], choice["finish_reason"]) == ("Hi", logprobs, "function_call")
    assert whole["usage"] == usage


@promise("upstream.quirks")
def test_oddities_of_model_servers_are_evened_out(raw: Raw) -> None:
    """openai.md §1.5, §1.7, P23: nulls in tool deltas, ids repeated, null delta, a role in each chunk, odd line ends."""
    call = '{"index":0,"id":"c1","type":"function","function":{"name":"f","arguments":"%s"}}'
    deltas = [
        '{"role":"assistant","content":null}',
        '{"role":"assistant","content":null,"tool_calls":[%s]}' % (call % "{"),
        '{"role":"assistant","tool_calls":[%s]}' % (call % "}"),
        "null",
    ]
    lines = [f'data:{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}\r\n\r\n' for delta in deltas]
    lines.append('data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\r\n\r\ndata: [DONE]\r\n\r\n')
    answer = raw.chat("verbatim", Verbatim(": hello\r\n\r\n" + "".join(lines)).prompt())
    assert complaints(answer.body) == []
    calls = [each["choices"][0]["delta"]["tool_calls"][0] for each in answer.chunks[1:-1]]
    assert "".join(each["function"]["arguments"] for each in calls) == "{}"
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@promise("ids.everywhere")
def test_request_and_workflow_are_named_on_streams_and_whole_answers(raw: Raw, model: str) -> None:
    """openai.md §1.16. A sane request id comes back."""
    for stream in (True, False):
        answer = raw.chat(model, script('say "hi"'), stream=stream, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.run.startswith("task-")
