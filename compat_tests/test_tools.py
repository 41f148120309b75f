"""Models that call tools of their own, from outside: one coherent answer, whatever happened in between."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, OpenAI

from compat_tests.doors import DOORS, Door, Server
from compat_tests.manifest import promise
from compat_tests.raw import TIMEOUT_S, Raw, script
from compat_tests.rules import Asked, complaints
from compat_tests.test_openai_sdk import WEATHER, user

LOOK = script('say "Let me look. "; call weather {"city": "Paris"}; usage 10 5', "then", 'say "It is sunny."')
SAID = "Let me look. It is sunny."


@pytest.fixture(params=("equipped", "equipped-none"))
def equipped(request: pytest.FixtureRequest) -> str:
    """Each way to run a model with tools."""
    return str(request.param)


@promise("tools.coherent")
def test_the_answer_is_the_text_of_all_turns(client: OpenAI, raw: Raw, equipped: str) -> None:
    """orchestration.md §1: clients execute the tool calls that they see, so they see none of the model's own."""
    whole = client.chat.completions.create(model=equipped, messages=user(LOOK))
    message = whole.choices[0].message
    assert (message.content, message.tool_calls, whole.choices[0].finish_reason) == (SAID, None, "stop")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 30
    with client.chat.completions.stream(model=equipped, messages=user(LOOK), stream_options={"include_usage": True}) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert not {kind for kind in kinds if kind.startswith("tool_calls")}
    assert (final.choices[0].message.content, final.choices[0].finish_reason) == (SAID, "stop")
    assert final.usage == whole.usage
    streamed = raw.chat(equipped, LOOK, stream=True, stream_options={"include_usage": True})
    assert complaints(streamed.body, Asked(usage=True)) == []
    assert b"tool_calls" not in streamed.body


@promise("tools.resume")
def test_the_stream_is_resumed_at_every_chunk(raw: Raw, equipped: str) -> None:
    """design.md §1: turns are in the log as all else is."""
    first = raw.chat(equipped, LOOK, stream=True)
    for count in range(len(first.frames)):
        assert raw.resume(first.run, count).frames == first.frames[count:]


@promise("tools.clients-own")
def test_the_clients_tools_still_end_the_turn(client: OpenAI, equipped: str) -> None:
    """orchestration.md §1: the first turn calls the model's tool, the second the client's, whose next request has its result."""
    prompt = script(
        'call weather {"city": "Paris"}', "then", 'say "And "; call get_weather {"city": "Rome"}', "then", 'say "Both."'
    )
    messages = user(prompt)
    with client.chat.completions.stream(model=equipped, messages=messages, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        asked = stream.get_final_completion()
    message = asked.choices[0].message
    assert (message.content, asked.choices[0].finish_reason) == ("And ", "tool_calls")
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call.to_dict()]},  # type: ignore[list-item,misc,typeddict-item]
        {"role": "tool", "tool_call_id": call.id, "content": "rainy"},
    ]
    answered = client.chat.completions.create(model=equipped, messages=messages, tools=[WEATHER])
    assert answered.choices[0].message.tool_calls is not None


@promise("tools.names")
def test_a_name_has_one_owner(client: OpenAI, equipped: str) -> None:
    """orchestration.md §1: whose tool was called must be clear."""
    taken: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    with pytest.raises(BadRequestError) as refused:
        client.chat.completions.create(model=equipped, messages=user(LOOK), tools=[WEATHER, taken])
    assert (refused.value.code, refused.value.param) == ("tool_name_taken", "tools[1].function.name")


@promise("tools.turns")
def test_a_model_that_never_answers_is_a_failure(raw: Raw, equipped: str) -> None:
    """orchestration.md §1: a maximum of turns. Nothing was said, so it is an HTTP status."""
    loop = script(*["call weather {}; then"] * 4, "call weather {}")
    answer = raw.chat(equipped, loop, stream=True)
    assert (answer.status, answer.json["error"]["code"]) == (502, "max_turns")


@promise("tools.leaving")
async def test_a_client_that_leaves_stops_the_tool(async_client: AsyncOpenAI, equipped: str, tmp_path: Path) -> None:
    """P14: what closes an upstream's socket ends a call as well."""
    began, ended = tmp_path / "began", tmp_path / "ended"
    arguments = json.dumps({"began": str(began), "ended": str(ended)})
    prompt = script('say "Let me see."', f"call wait_for_ever {arguments}")
    async with await async_client.chat.completions.create(model=equipped, messages=user(prompt), stream=True) as stream:
        await anext(aiter(stream))
        await until_there(began)
        assert not ended.exists()
    await until_there(ended)


async def until_there(file: Path) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not file.exists():  # noqa: ASYNC110, ASYNC240 - another process leaves it
            await asyncio.sleep(0.01)


@promise("tools.events")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_what_tools_do_is_seen_at_every_native_door(here: Server, door: Door, equipped: str) -> None:
    """native.md §2: secrets redacted; a call that does not fit the schema is an error and no invocation."""
    prompt = script('call login {"user": "ann", "password": "hunter2"}; call weather {"town": "Paris"}', "then", 'say "Done."')
    run = here.submit(equipped, prompt)
    with door.read(here, run) as events:
        seen = [event for event in events if event["type"].startswith("TOOL_") or event["type"] == "LLM_OUTPUT"]
    kinds = sorted(event["type"] for event in seen)
    assert kinds == ["LLM_OUTPUT", "LLM_OUTPUT", "TOOL_ERROR", "TOOL_INVOKED", "TOOL_OBSERVATION"]
    by_type = {event["type"]: event for event in seen}
    assert by_type["TOOL_INVOKED"]["payload"]["params"] == {"user": "ann", "password": "[redacted]"}
    assert by_type["TOOL_OBSERVATION"]["message"] == '{"known":true}'
    assert by_type["TOOL_ERROR"]["message"] == "arguments: Additional properties are not allowed ('town' was unexpected)"
    assert "hunter2" not in json.dumps(seen)
