"""Model servers that misbehave: each fault has a defined outcome (P23), and a failure is an exception in the SDK (P13)."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import openai
import pytest
from openai import AsyncOpenAI

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer, Verbatim
from compat_tests.raw import Raw, ask, script
from compat_tests.rules import Asked, complaints


class Fault(NamedTuple):
    statement: str
    status: int
    """What a client gets that was sent nothing yet."""
    code: str
    late_status: int | None = None
    """The same for a whole answer, when the fault came in the middle of it; an error object inside a stream has no status."""
    early_only: bool = False
    """It cannot happen in the middle of an answer."""


REJECTIONS = {
    "500": Fault("status 500 code boom", 500, "boom", 502),
    "503": Fault("status 503 code busy retry-after 1", 503, "busy", 502),
    "429": Fault("status 429 retry-after 3", 429, "rate_limit_exceeded", 429),
    "400": Fault("status 400 code bad", 400, "bad", 400),
}
FAULTS = REJECTIONS | {
    "cut": Fault("cut", 502, "upstream_cut"),
    "page": Fault("garbage", 502, "upstream_protocol_error", early_only=True),
    "two broken lines": Fault("broken; broken", 502, "upstream_protocol_error"),
    "line of 1.1 MB": Fault("line 1100KB", 502, "upstream_protocol_error"),
}
FAULTS_OF_SOCKETS = {
    "cut within a line": Fault("cut mid", 502, "upstream_cut"),
    "silence": Fault("hang", 504, "upstream_timeout"),
    "endless white space": Fault("blank forever", 502, "upstream_protocol_error"),
    "endless line": Fault("line forever", 502, "upstream_protocol_error"),
}
MODELS = ("demo", "demo-none", "wire", "wire-none", "impatient")
"""The last one is `wire` with short bounds on silence and size."""


def faults_of(model: str) -> dict[str, Fault]:
    return FAULTS | FAULTS_OF_SOCKETS if model == "impatient" else FAULTS


CASES = [(model, fault) for model in MODELS for fault in faults_of(model)]
LATE_CASES = [(model, fault) for model, fault in CASES if not faults_of(model)[fault].early_only]

OPENINGS = {
    "a word": 'tokens "Once"',
    "many words": "say 30 words",
    "a tool call": 'call f {"a": 1}',
    "reasoning": 'reason "Hm."',
    "a refusal": 'refuse "No"',
}

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


@promise("fault.before-output", "errors.before-output")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("model", "name"), CASES)
def test_a_fault_before_the_first_word_is_an_http_error(raw: Raw, model: str, name: str, stream: bool) -> None:
    """openai.md §1.10, P23: an HTTP error of its class, for streams too."""
    fault = faults_of(model)[name]
    answer = raw.chat(model, script(fault.statement), stream=stream)
    assert (answer.status, answer.error["code"]) == (fault.status, fault.code)
    assert answer.headers["content-type"].startswith("application/json")


@promise("fault.mid-answer", "errors.in-band")
@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_fault_after_it_is_an_error_in_the_stream(raw: Raw, model: str, opening: str) -> None:
    """openai.md §1.10, P23: one error event on its own, no finish reason, no `[DONE]`; what was said before it stays."""
    for name, fault in faults_of(model).items():
        if fault.early_only:
            continue
        answer = raw.chat(model, script(OPENINGS[opening], fault.statement), **USAGE)
        assert answer.status == 200, name
        assert answer.error["code"] == fault.code, name
        assert complaints(answer.body, Asked(usage=True)) == [], name
        assert answer.chunks[0]["choices"][0]["delta"] == {"role": "assistant"}, name
        assert len(answer.chunks) > 2, name
        if opening == "many words":
            assert len(answer.text.split()) == 30, name


@promise("fault.whole", "errors.before-output")
@pytest.mark.parametrize(("model", "name"), LATE_CASES)
def test_a_fault_at_any_time_is_an_http_error_of_a_whole_answer(raw: Raw, model: str, name: str) -> None:
    """openai.md §3: half an answer is not given as a whole one."""
    fault = faults_of(model)[name]
    answer = raw.chat(model, script('tokens "Once" " upon"', fault.statement), stream=False)
    assert (answer.status, answer.error["code"]) == (fault.late_status or fault.status, fault.code)
    assert b"Once" not in answer.body


async def _outcome(client: AsyncOpenAI, model: str, prompt: str, n: int) -> tuple[type[BaseException] | None, list[str]]:
    """What the SDK makes of it: the exception, and the finish reasons that were seen."""
    finishes: list[str] = []
    try:
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], stream=True, n=n
        )
        async for chunk in stream:
            finishes += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
    except openai.OpenAIError as error:
        return type(error), finishes
    return None, finishes


@promise("fault.sdk-raises")
@pytest.mark.parametrize("model", MODELS)
async def test_the_sdk_never_takes_a_failure_for_an_answer(async_client: AsyncOpenAI, model: str) -> None:
    """P13: over all faults, whatever was said before: an exception, and never a finish reason."""
    cases = [
        (fault.statement, opening, n)
        for fault in faults_of(model).values()
        for opening in ("", *(() if fault.early_only else OPENINGS.values()))
        for n in ((1, 2) if opening in ("", OPENINGS["a word"]) else (1,))
    ]
    asked = (_outcome(async_client, model, script(opening, fault), n) for fault, opening, n in cases)
    outcomes = dict(zip(cases, await asyncio.gather(*asked), strict=True))
    bad = {case: outcome for case, outcome in outcomes.items() if outcome[0] is None or outcome[1]}
    assert not bad
    assert all(issubclass(outcome[0], openai.APIError) for outcome in outcomes.values() if outcome[0])


@promise("fault.sdk-raises")
async def test_the_sdk_takes_an_answer_for_an_answer(async_client: AsyncOpenAI, model: str) -> None:
    """The other side of the property above: it can tell the two apart."""
    outcomes = await asyncio.gather(*(_outcome(async_client, model, script(each), 1) for each in OPENINGS.values()))
    assert [outcome for outcome, _ in outcomes] == [None] * len(OPENINGS)
    assert [finishes for _, finishes in outcomes] == [["stop"], ["stop"], ["tool_calls"], ["stop"], ["stop"]]


@promise("fault.refused")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_upstream_that_refuses_connections_is_a_502(raw: Raw, stream: bool) -> None:
    """P23: none left: an HTTP error of that class."""
    answer = raw.chat("dead", "hi", stream=stream)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")


@promise("fault.fallback")
def test_the_next_upstream_answers_when_the_first_cannot(raw: Raw) -> None:
    """P23: the next upstream in order, and the client sees nothing of it."""
    answer = raw.chat("fallback", script('say "hi"'))
    assert (answer.text, complaints(answer.body)) == ("hi", [])


@promise("fault.hedge")
def test_a_second_upstream_answers_when_the_first_is_silent(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """P14: the first one's socket is closed at once."""
    prompt = script("once hang", 'say "hi"', mark)
    answer = raw.chat("hedged", prompt)
    assert (answer.text, complaints(answer.body)) == ("hi", [])
    assert model_server.endings(prompt) == ["cancelled", "completed"]


@promise("fault.resting")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_upstream_that_keeps_failing_is_left_alone(raw: Raw, stream: bool) -> None:
    """The first request of each process finds out, and is a 502."""
    *_, answer = (raw.chat("weary", "hi", stream=stream) for _ in range(4))
    assert (answer.status, answer.error["code"]) == (503, "upstream_unavailable")
    assert 3500 < int(answer.headers["retry-after"]) <= 3600


@promise("fault.retry")
def test_an_upstream_that_fails_once_is_asked_again(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """P23: before the first word, with a little patience."""
    prompt = script("once status 503", 'say "hi"', mark)
    answer = raw.chat("patient-with-503", prompt)
    assert (answer.text, complaints(answer.body)) == ("hi", [])
    assert [call.ending for call in model_server.calls(prompt)] == ["failed", "completed"]


@promise("fault.regenerate")
def test_an_answer_that_is_generated_again_goes_on_without_a_seam(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """P23, design.md §6: nothing is sent until the text agrees with what was sent."""
    prompt = script("say 20 words", "once cut", 'say " and the end"', mark)
    answer = raw.chat("again", prompt)
    assert answer.text == raw.chat("demo", script("say 20 words", 'say " and the end"')).text
    assert complaints(answer.body) == []
    assert [call.ending for call in model_server.calls(prompt)] == ["cut", "completed"]


@promise("fault.regenerate")
def test_an_answer_that_cannot_be_unsaid_ends_in_an_error(raw: Raw, mark: str) -> None:
    """openai.md §4: `OUTPUT_RESET` after text was sent."""
    answer = raw.chat("again", script('once say "first thought"', 'say "second"', "once cut", mark))
    assert answer.error["code"] == "output_reset"
    assert complaints(answer.body) == []


@promise("fault.continue")
def test_an_answer_that_was_cut_is_continued(raw: Raw, mark: str) -> None:
    """P23: by policy."""
    answer = raw.chat("onward", script("say 20 words", "once cut", 'say " and the end"', mark))
    assert answer.text == raw.chat("demo", script("say 20 words", 'say " and the end"')).text
    assert complaints(answer.body) == []


@promise("fault.broken-line")
def test_one_broken_line_is_passed_over(raw: Raw, model: str) -> None:
    """P23: counted and logged; the answer goes on."""
    answer = raw.chat(model, script('tokens "a"', "broken", 'tokens "b"'))
    assert (answer.text, complaints(answer.body)) == ("ab", [])


@promise("fault.packets")
@pytest.mark.parametrize("newlines", ["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [1, 3])
def test_how_bytes_are_cut_into_packets_does_not_matter(raw: Raw, wire_model: str, newlines: str, size: int) -> None:
    """P23: a UTF-8 character or a CRLF across packets; one byte per packet."""
    text = "h\u00e9 \u20ac \U0001f600 \u2028 end"
    answer = raw.chat(wire_model, script(f"packets {size}", f"newlines {newlines}", f"tokens {json.dumps(text)}", "call f"))
    assert (answer.text, complaints(answer.body)) == (text, [])


@promise("fault.no-usage")
def test_usage_that_the_upstream_does_not_give_is_counted_and_flagged(raw: Raw, model: str) -> None:
    """P23: counted by us, estimated."""
    answer = raw.chat(model, script("no usage", "say 30 words"), **USAGE)
    usage = answer.chunks[-1]["usage"]
    assert usage["estimated"] is True
    assert usage["prompt_tokens"] > 3
    assert 20 <= usage["completion_tokens"] <= 60
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert complaints(answer.body, Asked(usage=True)) == []


@promise("fault.no-end")
@pytest.mark.parametrize("missing", ["finish", "done"])
def test_an_answer_that_lacks_one_of_its_two_ends_is_complete(raw: Raw, wire_model: str, missing: str) -> None:
    """P23: `[DONE]` without finish reason; finish reason without `[DONE]`."""
    answer = raw.chat(wire_model, script(f"no {missing}", 'say "all of it"'))
    assert (answer.text, complaints(answer.body)) == ("all of it", [])
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "stop"


@promise("fault.no-end")
def test_an_answer_that_lacks_both_of_its_ends_is_cut(raw: Raw, wire_model: str) -> None:
    """P23: it must never look like `stop`."""
    answer = raw.chat(wire_model, script("no finish", "no done", 'say "some of it"'))
    assert answer.error["code"] == "upstream_cut"
    assert complaints(answer.body) == []


@promise("fault.whole-upstream")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_upstream_that_does_not_stream_is_understood(raw: Raw, wire_model: str, stream: bool) -> None:
    """openai.md §3: one piece is an answer too."""
    answer = raw.chat(wire_model, script("whole", "say 3 words", 'call f {"a": 1}'), stream=stream)
    if stream:
        assert complaints(answer.body) == []
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    else:
        message = answer.json["choices"][0]["message"]
        assert (message["content"], len(message["tool_calls"])) == ("a stream is", 1)


@promise("fault.error-in-success")
@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Verbatim('{"error": {"message": "m", "code": "nope", "type": "server_error"}}', "application/json"), 502, "nope"),
        (Verbatim('{"error": {"message": "m", "code": 429}}', "application/json"), 429, "rate_limit_exceeded"),
        (Verbatim('data: {"error": {"message": "m", "code": "nope"}}\n\n'), 502, "nope"),
        (Verbatim('data: {"object": "error", "message": "m", "code": 400}\n\n'), 400, "upstream_rejected"),
        (Verbatim("<html>", "text/html"), 502, "upstream_protocol_error"),
        (Verbatim("<html>"), 502, "upstream_protocol_error"),
        (Verbatim("nonsense", "application/json"), 502, "upstream_protocol_error"),
        (Verbatim("{}", "application/json"), 502, "upstream_protocol_error"),
        (Verbatim(""), 502, "upstream_cut"),
        (Verbatim("", status=302), 502, "upstream_protocol_error"),
        (Verbatim("", status=204), 502, "upstream_protocol_error"),
    ],
)
def test_a_200_that_is_no_answer_is_a_failure(raw: Raw, answer: Verbatim, status: int, code: str) -> None:
    """P23: 200 with a JSON error body, or HTML: failure before the first token."""
    for stream in (True, False):
        got = raw.send("POST", "/v1/chat/completions", ask("verbatim", answer.prompt(), stream=stream))
        assert (got.status, got.error["code"]) == (status, code)


@promise("fault.odd-tools")
def test_odd_tool_calls_are_passed_through_and_never_invented(raw: Raw) -> None:
    """P23: a missing id stays missing, arguments that never parse go on as sent."""
    deltas = ['{"index":0,"function":{"name":"f","arguments":"{nope"}}', '{"index":0,"function":{"arguments":"]]"}}']
    lines = [f'data: {{"choices":[{{"index":0,"delta":{{"tool_calls":[{delta}]}}}}]}}\n\n' for delta in deltas]
    answer = raw.chat("verbatim", Verbatim("".join(lines) + "data: [DONE]\n\n").prompt())
    calls = [each["choices"][0]["delta"]["tool_calls"][0] for each in answer.chunks[1:-1]]
    assert [call.get("id") for call in calls] == [None, None]
    assert "".join(call["function"]["arguments"] for call in calls) == "{nope]]"
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
