"""Turns with tools: what is said of them, what the upstream is told, and what happens when tools misbehave."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import headgate
from orchestrator.agents.job import Stop
from orchestrator.agents.tool_work import MAX_CALLS
from orchestrator.agents.transcript import Transcript
from orchestrator.events import Event, EventType
from orchestrator.runs import RunState
from orchestrator.tools.registry import Tools
from tests.orchestrator.agents.world import World, said, types

THEIRS = {"type": "function", "function": {"name": "theirs", "parameters": {"type": "object"}}}
OF_TOOLS = ("TOOL_INVOKED", "TOOL_OBSERVATION", "TOOL_ERROR")


def told(events: list[Event]) -> list[tuple[str, str | None, dict[str, Any]]]:
    """The events of tools, without how long they took."""
    return [
        (event.type, event.message, {key: value for key, value in (event.payload or {}).items() if key != "duration_ms"})
        for event in events
        if event.type in OF_TOOLS
    ]


def outputs(events: list[Event]) -> list[dict[str, Any]]:
    return [event.payload or {} for event in events if event.type == EventType.LLM_OUTPUT]


@headgate.tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


@headgate.tool
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


async def test_a_tool_is_called_and_the_model_answers_with_what_it_said(world: World) -> None:
    world.tools.register("weather", weather)
    job = await world.job(
        'say "Let me look. "; call weather {"city": "Paris"}; usage 10 5; then; say "It is sunny."', tools=("weather",)
    )
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert types(events) == [
        "WORKFLOW_STARTED",
        "AGENT_STARTED",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "TOOL_INVOKED",
        "TOOL_OBSERVATION",
        "LLM_PARTIAL",
        "LLM_OUTPUT",
        "AGENT_COMPLETED",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]
    assert said(events) == "Let me look. It is sunny."
    first, second = outputs(events)
    call = first["server_tool_calls"][0]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert "tool_calls" not in first
    assert (first["finish_reason"], second["finish_reason"]) == ("tool_calls", "stop")
    assert told(events) == [
        ("TOOL_INVOKED", None, {"tool": "weather", "call_id": call["id"], "params": {"city": "Paris"}}),
        ("TOOL_OBSERVATION", "sunny in Paris", {"tool": "weather", "call_id": call["id"], "success": True}),
    ]
    ending = events[-2].payload
    assert ending is not None
    assert ending["result"] == "Let me look. It is sunny."
    assert ending["finish_reason"] == "stop"
    assert ending["usage"]["total_tokens"] == 30
    asked = world.upstream.witness.calls[1].body
    assert asked["messages"][1:] == [
        {"role": "assistant", "content": "Let me look. ", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny in Paris"},
    ]


async def test_the_upstream_is_offered_our_tools_and_the_clients(world: World) -> None:
    world.tools.register("add", add)
    job = await world.job('say "hello"', tools=("add",), body={"tools": [THEIRS]})
    await world.work(job)
    ours = {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
    }
    assert world.upstream.witness.calls[0].body["tools"] == [{"type": "function", "function": ours}, THEIRS]


async def test_calls_of_one_turn_run_at_once_and_are_told_in_order(world: World) -> None:
    second_is_done = asyncio.Event()

    @headgate.tool
    async def first() -> str:
        await second_is_done.wait()
        return "one"

    @headgate.tool
    async def second() -> str:
        second_is_done.set()
        return "two"

    world.tools.register("first", first)
    world.tools.register("second", second)
    job = await world.job("call first; call second", tools=("first", "second"))
    await world.work(job)
    events = await world.events(job.run.id)
    assert [message for kind, message, _ in told(events) if kind == "TOOL_OBSERVATION"] == ["two", "one"]
    assert [message["content"] for message in world.upstream.witness.calls[1].body["messages"][2:]] == ["one", "two"]
    assert said(events) == "The tool answered: one; two"


async def test_a_call_of_the_clients_tool_ends_the_turn(world: World) -> None:
    world.tools.register("add", add)
    job = await world.job('call theirs {"x": 1}', tools=("add",), body={"tools": [THEIRS]})
    await world.work(job)
    events = await world.events(job.run.id)
    (output,) = outputs(events)
    assert output["tool_calls"][0]["function"] == {"name": "theirs", "arguments": '{"x": 1}'}
    assert output["finish_reason"] == "tool_calls"
    ending = events[-2].payload
    assert ending is not None
    assert ending["finish_reason"] == "tool_calls"


async def test_where_both_are_called_only_the_client_is_asked(world: World) -> None:
    """Its next request would not say what our tool did, so ours is not called. Theirs is numbered as if it were alone."""
    world.tools.register("add", add)
    job = await world.job('call add {"a": 1, "b": 2}; call theirs {}', tools=("add",), body={"tools": [THEIRS]})
    await world.work(job)
    events = await world.events(job.run.id)
    calls = [call for event in events if event.type == "LLM_PARTIAL" for call in (event.payload or {})["tool_calls"]]
    assert {call["index"] for call in calls} == {0}
    assert calls[0]["function"]["name"] == "theirs"
    assert [(kind, payload["code"]) for kind, _, payload in told(events)] == [("TOOL_ERROR", "not_called")]
    assert len(world.upstream.witness.calls) == 1


async def test_a_tool_that_the_model_made_up_is_answered(world: World) -> None:
    """Where the client has no tools, nobody else could answer."""
    world.tools.register("add", add)
    job = await world.job("call subtract", tools=("add",))
    await world.work(job)
    events = await world.events(job.run.id)
    assert [(kind, payload["code"]) for kind, _, payload in told(events)] == [("TOOL_ERROR", "tool_unavailable")]
    assert said(events) == "The tool answered: There is no tool of this name. There are: add."


async def test_a_turn_has_a_bound_of_calls(world: World) -> None:
    """A model gone wild makes thousands, and each is an event, a task, and a line of the next prompt."""
    world.tools.register("add", add)
    calls = "; ".join('call add {"a": 1, "b": 2}' for _ in range(MAX_CALLS + 2))
    job = await world.job(f'{calls}; then; say "done"', tools=("add",))
    await world.work(job)
    kinds = [kind for kind, _, _ in told(await world.events(job.run.id))]
    assert (kinds.count("TOOL_OBSERVATION"), kinds.count("TOOL_ERROR")) == (MAX_CALLS, 2)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ('{"a": 1, "b": "two"}', "arguments.b: 'two' is not of type 'integer'"),
        ('{"a": 1}', "arguments: 'b' is a required property"),
        ('"{no json"', "The arguments are not JSON: JSON is malformed: object keys must be strings (byte 1)"),
        ('"[1, 2]"', "The arguments are not a JSON object."),
    ],
)
async def test_arguments_that_do_not_fit_are_not_a_call(world: World, arguments: str, answer: str) -> None:
    world.tools.register("add", add)
    job = await world.job(f"call add {arguments}", tools=("add",))
    await world.work(job)
    events = await world.events(job.run.id)
    ((kind, message, payload),) = told(events)
    assert (kind, message, payload["code"]) == ("TOOL_ERROR", answer, "invalid_arguments")
    assert said(events) == f"The tool answered: {answer}"


async def test_what_is_wrong_in_a_tool_is_an_answer_for_the_model(world: World, caplog: pytest.LogCaptureFixture) -> None:
    @headgate.tool
    def refuses() -> str:
        raise headgate.ToolError("No such city; did you mean Paris?")

    @headgate.tool
    async def breaks() -> str:
        raise RuntimeError("the password is hunter2")

    world.tools.register("refuses", refuses)
    world.tools.register("breaks", breaks)
    job = await world.job("call refuses; call breaks", tools=("refuses", "breaks"))
    await world.work(job)
    events = await world.events(job.run.id)
    results = {payload["tool"]: (kind, message) for kind, message, payload in told(events) if kind != "TOOL_INVOKED"}
    assert results == {
        "refuses": ("TOOL_OBSERVATION", "No such city; did you mean Paris?"),
        "breaks": ("TOOL_ERROR", "The tool failed (RuntimeError)."),
    }
    assert "the function behind the tool breaks raised" in caplog.text


async def test_a_tool_that_hangs_is_given_up(world: World) -> None:
    stopped = asyncio.Event()
    let = threading.Event()

    @headgate.tool
    async def hangs() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    @headgate.tool
    def blocks() -> str:
        let.wait(10)
        return ""

    world.tools.register("hangs", hangs)
    world.tools.register("blocks", blocks)
    job = await world.job("call hangs; call blocks", tools=("hangs", "blocks"), tool_timeout_s=0.05)
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert [payload["code"] for kind, _, payload in told(events) if kind == "TOOL_ERROR"] == ["tool_timeout"] * 2
    assert stopped.is_set()
    let.set()


async def test_a_tool_that_does_not_let_itself_be_stopped_is_left_alone(world: World) -> None:
    let = asyncio.Event()

    @headgate.tool
    async def stubborn() -> str:
        while not let.is_set():
            try:
                await let.wait()
            except asyncio.CancelledError:
                continue
        return ""

    world.tools.register("stubborn", stubborn)
    job = await world.job("call stubborn", tools=("stubborn",), tool_timeout_s=0.05)
    result = await world.work(job)
    assert result.state is RunState.COMPLETED
    let.set()
    await asyncio.sleep(0)


async def test_ten_megabytes_are_cut_and_the_model_is_told(world: World) -> None:
    @headgate.tool
    def huge() -> str:
        return "ü" * 5_000_000

    world.tools.register("huge", huge)
    job = await world.job('call huge; then; say "Well."', tools=("huge",))
    await world.work(job)
    events = await world.events(job.run.id)
    (_, message, _) = told(events)[1]
    assert message is not None
    note = "\n[Cut off: the result has 10000000 bytes, of which these are the first 65536.]"
    assert message == "ü" * 32768 + note
    assert world.upstream.witness.calls[1].body["messages"][-1]["content"] == message


async def test_secrets_are_not_logged(world: World) -> None:
    seen: list[dict[str, Any]] = []

    @headgate.tool
    async def login(user: str, password: str, note: str, max_tokens: int) -> str:
        seen.append({"password": password, "note": note})
        return "the key is sk-configured-secret"

    world.tools.redactor = Tools({}, secrets=["sk-configured-secret"]).redactor
    world.tools.register("login", login)
    job = await world.job(
        'call login {"user": "ann", "password": "hunter2", "note": "sk-configured-secret", "max_tokens": 5}', tools=("login",)
    )
    await world.work(job)
    events = await world.events(job.run.id)
    assert seen == [{"password": "hunter2", "note": "sk-configured-secret"}]
    (_, _, invoked), (_, message, _) = told(events)
    assert invoked["params"] == {"user": "ann", "password": "[redacted]", "note": "[redacted]", "max_tokens": 5}
    assert message == "the key is [redacted]"
    assert "hunter2" not in repr([event for event in events if event.type != "WORKFLOW_STARTED"])
    assert "sk-configured" not in repr(events)


async def test_a_model_that_only_calls_tools_comes_to_an_end(world: World) -> None:
    world.tools.register("add", add)
    job = await world.job("call add; then; call add; then; call add", tools=("add",), max_turns=2)
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.failure is not None
    assert result.failure.code == "max_turns"
    assert types(events)[-3:] == ["AGENT_FAILED", "WORKFLOW_FAILED", "STREAM_END"]
    assert len(world.upstream.witness.calls) == 2


async def test_a_forced_call_is_forced_once(world: World) -> None:
    """With `required` in every turn no model would ever come to its answer."""
    world.tools.register("add", add)
    job = await world.job('call add {"a": 1, "b": 2}', tools=("add",), body={"tool_choice": "required"})
    await world.work(job)
    assert [call.body["tool_choice"] for call in world.upstream.witness.calls] == ["required", "auto"]


async def test_arguments_that_were_cut_off_are_not_used(world: World) -> None:
    world.tools.register("add", add)
    job = await world.job('call add {"a": 1, "b": 2}; finish length', tools=("add",))
    await world.work(job)
    events = await world.events(job.run.id)
    assert [payload["code"] for _, _, payload in told(events)] == ["not_called"]
    ending = events[-2].payload
    assert ending is not None
    assert ending["finish_reason"] == "length"


async def test_a_cancel_reaches_the_tool(world: World) -> None:
    began, stopped = asyncio.Event(), asyncio.Event()

    @headgate.tool
    async def hangs() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    world.tools.register("hangs", hangs)
    job = await world.job("call hangs", tools=("hangs",))
    work = asyncio.create_task(world.work(job))
    await began.wait()
    world.desk.stop(job.run.id, Stop("cancelled", "enough", "key"))
    result = await work
    assert (result.state, stopped.is_set()) == (RunState.CANCELLED, True)
    events = await world.events(job.run.id)
    assert types(events)[-4:] == ["TOOL_INVOKED", "TOOL_ERROR", "WORKFLOW_CANCELLED", "STREAM_END"]
    assert told(events)[1][2]["code"] == "cancelled"


async def test_a_deadline_ends_a_tool_too(world: World) -> None:
    @headgate.tool
    async def hangs() -> str:
        await asyncio.Event().wait()
        return ""

    world.tools.register("hangs", hangs)
    job = await world.job("call hangs", tools=("hangs",), timeout_s=0.2)
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.TIMEOUT
    assert types(events)[-5:] == ["TOOL_INVOKED", "TOOL_ERROR", "AGENT_FAILED", "WORKFLOW_FAILED", "STREAM_END"]


async def test_a_turn_generated_again_fits_onto_the_turns_before_it(world: World) -> None:
    """Offsets count the whole answer: the second turn's text begins where the first one's ended."""
    world.tools.register("add", add)
    job = await world.job(
        'say "one "; call add {"a": 1, "b": 2}; then; twice say "two three"; twice cut; say "two four"',
        tools=("add",),
        on_cut="regenerate",
    )
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "one two four"
    (reset,) = [event.payload for event in events if event.type == EventType.OUTPUT_RESET]
    assert reset is not None
    assert reset["offset"] == len("one two ")
    assert [event.message for event in events if event.type == EventType.LLM_OUTPUT] == ["one ", None, "two four"]


async def test_a_turn_that_thinks_again_and_differs_says_all_turns_again(world: World) -> None:
    """Only the end of a text can be unsaid by itself. Where the reasoning differs everything is, and is said once more."""
    world.tools.register("add", add)
    job = await world.job(
        'reason "Hm. "; say "one "; call add {"a": 1, "b": 2}; '
        'then; twice reason "A"; twice say "x"; twice cut; reason "B"; say "two"',
        tools=("add",),
        on_cut="regenerate",
    )
    result = await world.work(job)
    events = await world.events(job.run.id)
    assert result.state is RunState.COMPLETED
    assert said(events) == "one two"
    transcript = Transcript.of(event for event in events if event.agent_id == "agent")
    assert (transcript.text, "".join(transcript.choices[0].reasoning)) == ("one two", "Hm. B")
    outputs_said = [(event.message, (event.payload or {}).get("reasoning")) for event in events if event.type == "LLM_OUTPUT"]
    assert outputs_said == [("one ", "Hm. "), (None, None), ("two", "B")]


async def test_a_call_that_was_cut_while_it_was_written_is_written_again(world: World) -> None:
    world.tools.register("add", add)
    job = await world.job('say "one "; once call add; once cut; call add {"a": 1, "b": 2}', tools=("add",), on_cut="continue")
    await world.work(job)
    events = await world.events(job.run.id)
    assert said(events) == "one The tool answered: 3"
    assert [payload.get("success") for kind, _, payload in told(events) if kind == "TOOL_OBSERVATION"] == [True]
