"""The scripted upstream: deterministic, honest about its faults, and of one mind with the one that is asked over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pytest

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.config import OpenAIConfig, ScriptedConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.scripted_server import ScriptedServer
from orchestrator.upstreams.upstream import Call, Delta, Finish, Piece, Upstream, UpstreamError, Usage


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


def scripted(
    script: str | None = None, idle_timeout_s: float = 30.0, sleep: Callable[[float], Awaitable[None]] = no_sleep
) -> ScriptedUpstream:
    return ScriptedUpstream(config=ScriptedConfig(kind="scripted", script=script, idle_timeout_s=idle_timeout_s), sleep=sleep)


def call(prompt: str | list[dict[str, Any]], *, prefix: str = "", **body: Any) -> Call:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Call("task-1", "m", {"messages": messages, **body}, prefix)


async def told(upstream: Upstream, request: Call) -> tuple[list[Piece], UpstreamError | None]:
    pieces: list[Piece] = []
    try:
        async with aclosing(upstream.stream(request)) as answer:
            async for batch in answer:
                pieces.extend(batch)
    except UpstreamError as error:
        return pieces, error
    return pieces, None


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.content or "" for piece in pieces if isinstance(piece, Delta))


def finish(pieces: Sequence[Piece]) -> list[str]:
    return [piece.reason for piece in pieces if isinstance(piece, Finish)]


async def test_the_demo_answer_mentions_the_prompt_and_is_always_the_same() -> None:
    first, error = await told(scripted(), call("What is a durable run?"))
    assert (first, error) == await told(scripted(), call("What is a durable run?"))
    assert text(first).startswith("Hello! You said: “What is a durable run?”. No model was asked:")
    assert 50 < len(text(first).split()) < 80
    assert finish(first) == ["stop"]
    assert len([piece for piece in first if isinstance(piece, Delta)]) == len(text(first).split())


async def test_the_demo_answer_takes_its_time() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pieces, _ = await told(ScriptedUpstream(sleep=sleep), call("hi"))
    assert slept == [0.025] * (len([piece for piece in pieces if isinstance(piece, Delta)]) - 1)


async def test_limits_and_stops() -> None:
    assert (await told(scripted(), call("/script say 10 words", max_tokens=3)))[0] == [
        Delta(0, "a"),
        Delta(0, " stream"),
        Delta(0, " is"),
        Finish(0, "length"),
        Usage(4, 3, 7),
    ]
    for stop, left in (("two", "one "), (["x", "e t"], "on"), ("nothing", "one two three"), ("one", "")):
        pieces, _ = await told(scripted(), call('/script say "one two three"', stop=stop))
        assert (text(pieces), finish(pieces)) == (left, ["stop"]), stop


async def test_a_continued_answer_has_the_limits_of_the_whole() -> None:
    whole, _ = await told(scripted(), call("/script say 10 words", max_tokens=5))
    rest, _ = await told(scripted(), call("/script say 10 words", max_tokens=5, prefix="a stream"))
    assert ("a stream" + text(rest), finish(rest)) == (text(whole), ["length"])


async def test_empty_pieces_are_pieces() -> None:
    pieces, _ = await told(scripted(), call('/script tokens "a" "" "b"'))
    assert pieces[:3] == [Delta(0, "a"), Delta(0, ""), Delta(0, "b")]


async def test_a_continued_answer_skips_what_was_said_and_what_went_wrong() -> None:
    script = '/script reason "hm"; say "one two"; cut; say " three four"'
    pieces, error = await told(scripted(), call(script))
    assert (text(pieces), type(error).__name__) == ("one two", "UpstreamCut")
    for prefix in ("one two", "one tw", "one", "one two three four"):
        pieces, error = await told(scripted(), call(script, prefix=prefix))
        if prefix == "one two" or prefix.endswith("four"):
            assert (prefix + text(pieces), error) == ("one two three four", None)
        else:
            assert (prefix + text(pieces), type(error).__name__) == ("one two", "UpstreamCut")


async def test_a_continued_answer_is_silent_where_it_has_not_been_yet() -> None:
    """A run that was paused while its script hung went on as if the silence were over: `say "a"; hang` was complete at once.
    What lies before the end of the prefix is past, and nothing else; what a script wants to happen once, it says."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds:
            waits.append(seconds)

    script = '/script wait 1s; say "one"; wait 2s; say " two"; wait 3s; say " three"; wait 4s'
    for prefix, left in (("", [1, 2, 3, 4]), ("on", [2, 3, 4]), ("one", [2, 3, 4]), ("one t", [3, 4]), ("one two three", [4])):
        waits.clear()
        pieces, error = await told(scripted(sleep=sleep), call(script, prefix=prefix))
        assert (prefix + text(pieces), error, waits) == ("one two three", None, left), prefix
    waits.clear()
    _, error = await told(scripted(sleep=sleep), call('/script say "one"; hang', prefix="one"))
    assert type(error).__name__ == "UpstreamSilent"
    pieces, error = await told(scripted(sleep=sleep), call('/script say "one"; once hang; say " two"', prefix="one"))
    assert (text(pieces), error) == (" two", None)


async def test_once_is_counted_for_each_run() -> None:
    upstream = scripted()
    script = '/script once cut; say "ok"'
    assert [text((await told(upstream, call(script)))[0]) for _ in range(3)] == ["", "ok", "ok"]
    other = Call("task-2", "m", call(script).body)
    assert [text((await told(upstream, other))[0]) for _ in range(2)] == ["", "ok"]


async def test_turns_follow_the_conversation() -> None:
    script = '/script call get_weather {"city": "Paris"}; then; say "It says: "; say results'
    first, _ = await told(scripted(), call(script))
    calls = [piece.tool_calls[0] for piece in first if isinstance(piece, Delta) and piece.tool_calls]
    assert calls[0]["function"]["name"] == "get_weather"
    assert json.loads("".join(part["function"]["arguments"] for part in calls)) == {"city": "Paris"}
    assert finish(first) == ["tool_calls"]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": script},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "tool_call_id": calls[0]["id"], "content": "rain"},
    ]
    assert text((await told(scripted(), call(messages)))[0]) == "It says: rain"
    messages += [{"role": "assistant", "content": "It says: rain"}]
    assert text((await told(scripted(), call(messages)))[0]) == "The tool answered: rain"


async def test_structured_output_and_forced_tools() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(text((await told(scripted(), call("hi", response_format=wanted)))[0])) == {"n": 3}
    assert "answer" in json.loads(text((await told(scripted(), call("hi", response_format={"type": "json_object"})))[0]))
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        pieces, _ = await told(scripted(), call("hi", tools=tools, tool_choice=choice))
        arguments = [
            piece.tool_calls[0]["function"]["arguments"] for piece in pieces if isinstance(piece, Delta) and piece.tool_calls
        ]
        assert (json.loads("".join(arguments)), finish(pieces)) == ({"n": 3}, ["tool_calls"])
    assert finish((await told(scripted(), call("hi", tools=tools)))[0]) == ["stop"]


@pytest.mark.parametrize("schema", [{"type": "array", "minItems": "x"}, {"properties": [1]}, {"type": "number", "minimum": "a"}])
async def test_a_schema_that_is_none_is_the_clients_mistake(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await told(scripted(), call("hi", response_format={"type": "json_schema", "json_schema": {"schema": schema}}))


async def test_a_mistake_in_a_script_is_the_clients_mistake() -> None:
    with pytest.raises(InvalidRequest, match="script, line 1, column 9: unknown statement"):
        await told(scripted(), call("/script jump"))


async def test_a_script_in_the_configuration_is_for_every_other_prompt() -> None:
    upstream = scripted('say "configured"')
    assert text((await told(upstream, call("hi")))[0]) == "configured"
    assert text((await told(upstream, call('/script say "asked"')))[0]) == "asked"


async def test_a_script_that_does_nothing_for_ever_holds_nobody_up() -> None:
    """It must not keep the event loop to itself, and it ends."""
    other = 0

    async def elsewhere() -> None:
        nonlocal other
        while True:
            other += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(elsewhere())
    pieces, _ = await told(scripted(), call("/script repeat forever; repeat 1000; seed 1; end; end"))
    task.cancel()
    assert finish(pieces) == ["length"]
    assert other > 1000


async def test_what_the_witness_saw() -> None:
    upstream = scripted()
    await told(upstream, call("/script say 3 words"))
    await told(upstream, call("/script say 3 words; cut"))
    await told(upstream, call("/script status 500"))
    async with aclosing(upstream.stream(call("/script say 3 words; wait 1s; say 3 words"))) as answer:
        await anext(answer)
    assert [(record.pieces, record.ending, record.closed.is_set()) for record in upstream.witness.calls] == [
        (5, "completed", True),
        (3, "cut", True),
        (0, "failed", True),
        (3, "cancelled", True),
    ]


async def test_cancelling_the_reader_is_seen_at_once() -> None:
    upstream = ScriptedUpstream()
    task = asyncio.create_task(told(upstream, call("/script hang")))
    record = await upstream.witness.nth(0)
    task.cancel()
    async with asyncio.timeout(0.25):
        await record.closed.wait()
    assert record.ending == "cancelled"
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
async def over_http() -> AsyncIterator[OpenAIUpstream]:
    async with ScriptedServer().running() as server, upstream_session() as session:
        config = OpenAIConfig(kind="openai", base_url=server.base_url, idle_timeout_s=0.2)
        yield OpenAIUpstream("wire", config, session)


@pytest.mark.parametrize(
    "script",
    [
        'say "one two three"',
        "say 5 words; rate 500/s; say 5 words",
        "choices 3; say 2 words",
        'reason 3 words; say "so"; refuse "no"',
        'say "a"; call f {"a": "a long enough argument"}; call g; call f "{"',
        "seed 3; repeat 4; say 2 words; end; usage 7 8",
        "say 2 words; finish length",
        "say 2 words; finish end_turn",
        "say 2 words; finish whatever",
        "say 1 word; broken; say 1 word",
        "say 1 word; broken; broken; say 1 word",
        "say 1 word; blank 1KB; line 2MB",
        "say 2 words; no finish",
        "call f; no finish; no usage",
        "say 2 words; no usage",
        "say 2 words; no done",
        "say 2 words; no finish; no done",
        "say 2 words; no role; no done; no usage",
        "choices 2; say 2 words; no finish",
        "say 2 words; cut",
        "say 2 words; cut mid",
        "say 2 words; hang",
        'say 2 words; status 429 code rate_limit_exceeded "slow"',
        'say 2 words; error "boom"',
        "cut",
        "hang",
        "garbage",
        "status 401",
        "status 404 code model_not_found",
        'status 400 "This model\'s maximum context length is 10 tokens."',
        'status 429 retry-after 2 "slow"',
        "status 503",
        "once cut; say 1 word",
    ],
)
async def test_in_process_and_on_the_wire_a_script_means_the_same(over_http: OpenAIUpstream, script: str) -> None:
    """Whatever a test shows with the one holds with the other: pieces, and every fact of the error."""
    request = call(f"/script {script}")
    here, here_error = await told(scripted(idle_timeout_s=0.2), request)
    there, there_error = await told(over_http, request)
    assert here == there
    assert type(here_error) is type(there_error)
    if here_error is not None and there_error is not None:
        assert here_error.failure() == there_error.failure()
