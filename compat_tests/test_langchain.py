"""langchain-openai: what a chain or an agent does with a chat model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import script


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@pytest.fixture
async def llm(headgate: str, model: str) -> AsyncIterator[ChatOpenAI]:
    """With its own connections: those that LangChain keeps for everybody belong to the event loop of the first who used them."""
    with openai.DefaultHttpxClient() as http:
        async with openai.DefaultAsyncHttpxClient() as async_http:
            yield ChatOpenAI(
                base_url=f"{headgate}/v1",
                api_key=SecretStr("none"),
                model=model,
                max_retries=0,
                timeout=20.0,
                http_client=http,
                http_async_client=async_http,
            )


@promise("langchain.invoke")
async def test_invoke(llm: ChatOpenAI) -> None:
    """openai.md §3: text, finish reason, usage."""
    prompt = script('say "Hello, world."', "usage 5 6")
    for answer in (llm.invoke(prompt), await llm.ainvoke(prompt)):
        assert answer.text == "Hello, world."
        assert answer.response_metadata["finish_reason"] == "stop"
        assert answer.usage_metadata is not None
        assert {key: answer.usage_metadata[key] for key in ("input_tokens", "output_tokens", "total_tokens")} == {
            "input_tokens": 5,
            "output_tokens": 6,
            "total_tokens": 11,
        }


def added_up(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    first, *others = chunks
    return sum(others, first)


@promise("langchain.stream")
def test_stream(llm: ChatOpenAI) -> None:
    """openai.md §1.4: usage is added up over chunks, so it may come only once."""
    chunks = list(llm.stream(script("say 10 words", "usage 5 6"), stream_usage=True))
    whole = added_up(chunks)
    assert [chunk.text for chunk in chunks if chunk.text][:2] == ["a", " stream"]
    assert whole.text == "a stream is a promise kept one word at a"
    assert whole.usage_metadata is not None
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (5, 6)
    assert whole.response_metadata["finish_reason"] == "stop"


@promise("langchain.stream")
async def test_astream(llm: ChatOpenAI) -> None:
    """openai.md §1: without usage, as it was not asked for."""
    whole = added_up([chunk async for chunk in llm.astream(script("say 10 words"), stream_usage=False)])
    assert whole.text == "a stream is a promise kept one word at a"
    assert whole.usage_metadata is None
    assert whole.response_metadata["finish_reason"] == "stop"


@promise("langchain.tools")
async def test_tools_are_bound_called_and_answered(llm: ChatOpenAI) -> None:
    """openai.md §1.5: whole and streamed calls are the same."""
    bound = llm.bind_tools([get_weather])
    prompt = script('call get_weather {"city": "Paris"}', 'call get_weather {"city": "Rome"}', "then", 'say "Sunny."')
    called = bound.invoke(prompt)
    streamed = added_up([chunk async for chunk in bound.astream(prompt)])  # type: ignore[misc]
    for message in (called, streamed):
        assert [(call["name"], call["args"]) for call in message.tool_calls] == [
            ("get_weather", {"city": "Paris"}),
            ("get_weather", {"city": "Rome"}),
        ]
        assert not message.invalid_tool_calls
        assert message.response_metadata["finish_reason"] == "tool_calls"
    assert isinstance(called, AIMessage)
    results = [ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"]) for call in called.tool_calls]
    assert bound.invoke([HumanMessage(prompt), called, *results]).text == "Sunny."


@promise("langchain.structured")
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(llm: ChatOpenAI, method: Any) -> None:
    """openai.md §2: `response_format` and a forced tool."""
    assert isinstance(llm.with_structured_output(Person, method=method).invoke("Who?"), Person)


@promise("langchain.errors")
async def test_errors_are_the_sdks(llm: ChatOpenAI) -> None:
    """openai.md §1.10, §1.12, P13: before the first word and after it."""
    with pytest.raises(openai.RateLimitError):
        llm.invoke(script("status 429"))
    with pytest.raises(openai.BadRequestError):
        await llm.ainvoke(script("status 400 code context_length_exceeded"))
    for statement in ("status 503", "say 3 words; cut", "call f; cut"):
        with pytest.raises(openai.APIError):
            list(llm.stream(script(statement)))
        with pytest.raises(openai.APIError):
            [chunk async for chunk in llm.astream(script(statement))]


@promise("langchain.leaving")
@pytest.mark.parametrize("model", ["wire", "wire-none"], indirect=True)
async def test_leaving_the_stream_closes_the_upstream(llm: ChatOpenAI, mark: str, model_server: ModelServer) -> None:
    """openai.md §1.18, P14."""
    prompt = script("say 2 words", "hang", mark)
    async with aclosing(llm.astream(prompt)) as stream:  # type: ignore[type-var]
        async for chunk in stream:
            if chunk.text:
                break
    assert await asyncio.to_thread(model_server.ending, prompt, 2.0) == "cancelled"
