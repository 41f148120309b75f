"""The official Python SDK, sync and async, as its documentation uses it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream, OpenAI, Stream
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam
from pydantic import BaseModel

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import Raw, script

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def user(prompt: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": prompt}]


class Person(BaseModel):
    name: str
    age: int
    tags: list[str]


PERSON = script('say "{\\"name\\": \\"Ann\\", \\"age\\": 42, \\"tags\\": [\\"a\\", \\"b\\"]}"')
ANN = Person(name="Ann", age=42, tags=["a", "b"])


# Answers


@promise("sdk.whole")
async def test_a_whole_answer(client: OpenAI, async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §3."""
    prompt = script('say "Hello, world."', "usage 5 6")
    answers: list[ChatCompletion] = [
        client.chat.completions.create(model=model, messages=user(prompt)),
        await async_client.chat.completions.create(model=model, messages=user(prompt)),
    ]
    for answer in answers:
        assert answer.choices[0].message.content == "Hello, world."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 6, 11)
        assert answer._request_id


@promise("sdk.stream")
def test_a_stream(client: OpenAI, model: str) -> None:
    """openai.md §1: what every tutorial does, `choices[0]` on each chunk."""
    stream = client.chat.completions.create(model=model, messages=user(script("say 30 words")), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert len(text.split()) == 30


@promise("sdk.stream")
async def test_an_async_stream(async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §1."""
    stream = await async_client.chat.completions.create(model=model, messages=user(script("say 30 words")), stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert len(text.split()) == 30


@promise("sdk.stream", "chat.apart")
async def test_many_streams_at_once_are_kept_apart(async_client: AsyncOpenAI, model: str) -> None:
    """design.md §1: each of 40 clients gets its own answer and nothing of the others'."""

    async def answer(number: int) -> str:
        messages = user(script("rate 500/s", f'repeat 20; say " {number}"; end'))
        stream = await async_client.chat.completions.create(model=model, messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*map(answer, range(40))) == [f" {number}" * 20 for number in range(40)]


@promise("sdk.stream")
def test_usage_in_a_stream(client: OpenAI, model: str) -> None:
    """openai.md §1.4."""
    chunks = list(
        client.chat.completions.create(
            model=model, messages=user(script("say 3 words", "usage 5 6")), stream=True, stream_options={"include_usage": True}
        )
    )
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 11
    assert chunks[-1].choices == []


@promise("sdk.stream-helper")
def test_the_stream_helper_accumulates(client: OpenAI, model: str) -> None:
    """openai.md §1.1, §1.5: `.stream()` with its events and its final completion."""
    prompt = script('say "Let me see."', 'call get_weather {"city": "Paris"}', 'call get_weather {"city": "Rome"}')
    with client.chat.completions.stream(model=model, messages=user(prompt), tools=[WEATHER]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "tool_calls.function.arguments.delta"} <= set(kinds)
    assert kinds.count("tool_calls.function.arguments.done") == 2
    message = final.choices[0].message
    assert message.role == "assistant"
    assert message.content == "Let me see."
    assert message.tool_calls is not None
    assert [call.function.parsed_arguments for call in message.tool_calls] == [{"city": "Paris"}, {"city": "Rome"}]
    assert len({call.id for call in message.tool_calls}) == 2
    assert final.choices[0].finish_reason == "tool_calls"


@promise("sdk.stream-helper")
async def test_the_async_stream_helper_accumulates(async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §1.1, §1.4."""
    async with async_client.chat.completions.stream(
        model=model, messages=user(script("say 12 words", "usage 1 2")), stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "".join(deltas)
    assert len(deltas) == 12
    assert final.usage is not None
    assert final.usage.total_tokens == 3


@promise("sdk.stream-helper", "chat.n-choices")
def test_the_stream_helper_keeps_choices_apart(client: OpenAI, model: str) -> None:
    """openai.md §1.7."""
    with client.chat.completions.stream(model=model, messages=user(script("say 4 words")), n=2) as stream:
        final = stream.until_done().get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1]
    assert [choice.message.content for choice in final.choices] == ["a stream is a"] * 2


# Tools and structured output


@promise("sdk.tools")
def test_a_tool_is_called_and_its_result_is_answered(client: OpenAI, model: str) -> None:
    """openai.md §1.5, §2: the usual loop, whole answers."""
    messages = user(script('call get_weather {"city": "Paris"}', "then", 'say "Sunny in Paris."'))
    asked = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    message = asked.choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [
        message.model_dump(exclude_none=True),  # type: ignore[list-item]  # what the documentation does
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    answered = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER])
    assert (answered.choices[0].finish_reason, answered.choices[0].message.content) == ("stop", "Sunny in Paris.")


@promise("sdk.tools")
async def test_a_forced_tool_is_called(async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §2: `tool_choice`."""
    choices: list[Any] = ["required", {"type": "function", "function": {"name": "get_weather"}}]
    for choice in choices:
        stream = await async_client.chat.completions.create(
            model=model,
            messages=user("How is the weather?"),
            tools=[WEATHER],
            tool_choice=choice,
            stream=True,
        )
        calls = [call async for chunk in stream for call in chunk.choices[0].delta.tool_calls or ()]
        assert calls[0].function is not None
        assert calls[0].function.name == "get_weather"
        arguments = "".join(call.function.arguments or "" for call in calls if call.function)
        assert json.loads(arguments).keys() == {"city"}


@promise("sdk.parse")
async def test_a_parsed_answer(client: OpenAI, async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §2: `response_format` from a pydantic model."""
    whole = client.chat.completions.parse(model=model, messages=user(PERSON), response_format=Person)
    assert whole.choices[0].message.parsed == ANN
    whole = await async_client.chat.completions.parse(model=model, messages=user(PERSON), response_format=Person)
    assert whole.choices[0].message.parsed == ANN


@promise("sdk.parse")
def test_a_parsed_stream(client: OpenAI, model: str) -> None:
    """openai.md §2."""
    with client.chat.completions.stream(model=model, messages=user(PERSON), response_format=Person) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == ANN


@promise("sdk.parse")
def test_the_demo_answers_any_schema(client: OpenAI, model: str) -> None:
    """openai.md §2: the schema reaches whoever answers."""
    whole = client.chat.completions.parse(model=model, messages=user("Who?"), response_format=Person)
    assert isinstance(whole.choices[0].message.parsed, Person)


@promise("sdk.parse", "chat.refusal")
def test_a_refusal_is_not_parsed(client: OpenAI, model: str) -> None:
    """openai.md §3."""
    whole = client.chat.completions.parse(model=model, messages=user(script('refuse "No."')), response_format=Person)
    assert (whole.choices[0].message.refusal, whole.choices[0].message.parsed) == ("No.", None)


@promise("sdk.parse")
def test_an_answer_at_its_limit_raises_when_it_should_be_parsed(client: OpenAI, model: str) -> None:
    """openai.md §2: `max_completion_tokens`, `finish_reason: length`."""
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=model, messages=user(PERSON), response_format=Person, max_completion_tokens=2)


# Raw responses


@promise("sdk.raw-response", "ids.everywhere")
async def test_raw_responses_show_headers(client: OpenAI, async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §1.16."""
    raw = client.chat.completions.with_raw_response.create(model=model, messages=user(script('say "hi"')))
    assert raw.headers["x-workflow-id"].startswith("task-")
    assert raw.headers["x-request-id"] == raw.request_id
    assert raw.parse().choices[0].message.content == "hi"
    streaming = async_client.chat.completions.with_streaming_response
    async with streaming.create(model=model, messages=user(script('say "hi"')), stream=True) as response:
        assert response.headers["x-workflow-id"].startswith("task-")
        lines = [line async for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"


# Errors


@promise("sdk.errors")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("status 400", openai.BadRequestError),
        ("status 404", openai.NotFoundError),
        ("status 409", openai.ConflictError),
        ("status 422", openai.UnprocessableEntityError),
        ("status 429 retry-after 1", openai.RateLimitError),
        ("status 500", openai.InternalServerError),
        ("status 503", openai.InternalServerError),
        ("garbage", openai.InternalServerError),
    ],
)
async def test_errors_have_their_class(
    client: OpenAI, async_client: AsyncOpenAI, model: str, statement: str, error: type[openai.APIStatusError], stream: bool
) -> None:
    """openai.md §1.10, §1.12: raised by the call, before anything is read from the stream."""
    with pytest.raises(error) as raised:
        client.chat.completions.create(model=model, messages=user(script(statement)), stream=stream)
    assert type(raised.value) is error
    assert raised.value.request_id
    with pytest.raises(error):
        await async_client.chat.completions.create(model=model, messages=user(script(statement)), stream=stream)


@promise("sdk.errors")
def test_our_own_refusals_have_their_class(client: OpenAI, brisk_client: OpenAI) -> None:
    """openai.md §1.11, §1.12: code and param are where the SDK looks for them."""
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="demo", messages=user("hi"), temperature=9)
    assert (bad.value.param, bad.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        brisk_client.chat.completions.create(model="no-such-model", messages=user("hi"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError) as stranger:
        brisk_client.with_options(api_key="wrong").models.list()
    assert stranger.value.code == "invalid_api_key"
    with pytest.raises(openai.APIStatusError) as large:
        brisk_client.chat.completions.create(model="demo", messages=user("x" * 70_000))
    assert (large.value.status_code, large.value.code) == (413, "body_too_large")


@promise("sdk.errors", "errors.in-band")
def test_an_error_in_the_stream_is_raised_with_its_facts(client: OpenAI, model: str) -> None:
    """openai.md §1.10."""
    stream = client.chat.completions.create(model=model, messages=user(script("say 3 words", "cut")), stream=True)
    words: list[str] = []
    with pytest.raises(openai.APIError) as raised:
        words += [chunk.choices[0].delta.content or "" for chunk in stream]
    assert raised.value.code == "upstream_cut"
    assert "closed the connection" in raised.value.message


@promise("sdk.errors", "errors.in-band")
async def test_the_stream_helper_raises_too(async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §1.10, P13."""
    with pytest.raises(openai.APIError) as raised:
        async with async_client.chat.completions.stream(model=model, messages=user(script("say 3 words", "cut"))) as stream:
            await stream.get_final_completion()
    assert raised.value.code == "upstream_cut"


@promise("sdk.errors", "cancel.explicit")
def test_a_cancellation_by_somebody_else_is_raised(client: OpenAI, raw: Raw, wire_model: str) -> None:
    """openai.md §4: `run_cancelled`, for a reader other than the one who cancelled."""
    stream = client.chat.completions.create(model=wire_model, messages=user(script('say "a"', "hang")), stream=True)
    words = [next(stream).choices[0].delta.content for _ in range(2)]
    assert raw.cancel(stream.response.headers["x-workflow-id"]).status == 200
    with pytest.raises(openai.APIError) as raised:
        words += [chunk.choices[0].delta.content for chunk in stream]
    assert (words, raised.value.code) == ([None, "a"], "run_cancelled")


@promise("sdk.retries")
def test_the_sdk_retries_what_may_help_and_nothing_else(
    client: OpenAI, wire_model: str, mark: str, model_server: ModelServer
) -> None:
    """openai.md §1.12: `retry-after-ms` is obeyed, `x-should-retry: false` too."""
    patient = client.with_options(max_retries=1)
    helped = script("once status 503 retry-after 0", 'say "hi"', mark)
    answer = patient.chat.completions.create(model=wire_model, messages=user(helped))
    assert answer.choices[0].message.content == "hi"
    assert len(model_server.calls(helped)) == 2
    hopeless = script("status 401", mark)
    with pytest.raises(openai.InternalServerError):
        patient.chat.completions.create(model=wire_model, messages=user(hopeless))
    assert len(model_server.calls(hopeless)) == 1


# Keepalives and resuming


@promise("sdk.keepalive", "chat.keepalive")
@pytest.mark.parametrize("ids", ["true", "false"])
def test_keepalives_and_ids_do_not_disturb_the_sdk(brisk_client: OpenAI, model: str, ids: str) -> None:
    """openai.md §1.8, §1.9: after any `id:` line an empty event would be parsed."""
    stream = brisk_client.chat.completions.create(
        model=model,
        messages=user(script('say "a"', "wait 250ms", 'say "b"')),
        stream=True,
        extra_headers={"X-Headgate-Stream-Ids": ids},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"


@promise("sdk.resume")
def test_a_stored_completion_is_retrieved(client: OpenAI, brisk_client: OpenAI, model: str) -> None:
    """openai.md §3: with the SDK's own method, from another server too."""
    answer = client.chat.completions.create(model=model, messages=user(script('say "hi"', 'call f {"a": 1}')))
    for each in (client, brisk_client):
        again = each.chat.completions.retrieve(answer.id)
        assert again.model_dump() == answer.model_dump()


@promise("sdk.resume")
def test_a_stream_is_resumed_with_the_sdk(client: OpenAI, brisk_client: OpenAI, model: str) -> None:
    """openai.md §3: three chunks are received, the rest is asked for by their number, elsewhere."""
    stream = client.chat.completions.create(
        model=model,
        messages=user(script("rate 100/s", "say 10 words")),
        stream=True,
        extra_body={"headgate_options": {"on_disconnect": "continue"}},
    )
    received = [next(stream) for _ in range(3)]
    stream.close()
    rest: Stream[ChatCompletionChunk] = brisk_client.get(
        f"/chat/completions/{received[0].id}",
        cast_to=ChatCompletionChunk,
        options={"params": {"stream": True, "starting_after": 3}},
        stream=True,
        stream_cls=Stream[ChatCompletionChunk],
    )
    chunks = [*received, *rest]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a stream is a promise kept one word at a"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 11 + ["stop"]


@promise("sdk.resume")
async def test_an_async_stream_is_resumed_by_its_event_id(async_client: AsyncOpenAI, model: str) -> None:
    """openai.md §3."""
    path, kind = "/chat/completions", ChatCompletionChunk
    answer = await async_client.chat.completions.create(model=model, messages=user(script("say 5 words")))
    again: AsyncStream[ChatCompletionChunk] = await async_client.get(
        f"{path}/{answer.id}",
        cast_to=kind,
        options={"headers": {"Accept": "text/event-stream", "Last-Event-ID": "4"}},
        stream=True,
        stream_cls=AsyncStream[ChatCompletionChunk],
    )
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in again])
    assert answer.choices[0].message.content == "a stream" + text
