"""Clients that leave, and runs that are cancelled: the model server's word for it that its socket was closed."""

from __future__ import annotations

import asyncio
import time

import pytest
from openai import APITimeoutError, AsyncOpenAI, OpenAI

from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import CHAT, Answer, Raw, ask, headers_of, script, take_frames
from compat_tests.rules import complaints

BOUND_S = 2.0
"""P14: how long the upstream's socket may outlive the wish to cancel."""

MID_ANSWER = ('say "first"', "hang")


def assert_cancelled(raw: Raw, run: str) -> None:
    """Its stream ends with `run_cancelled`, and so does its completion."""
    answer = raw.resume(run)
    assert answer.error["code"] == "run_cancelled"
    whole = raw.retrieve(run)
    assert (whole.status, whole.error["code"]) == (409, "run_cancelled")
    assert whole.headers["x-should-retry"] == "false"


@promise("leave.cancel", "sdk.close")
def test_closing_the_sdks_stream_mid_answer_closes_the_upstream(
    client: OpenAI, raw: Raw, mark: str, wire_model: str, model_server: ModelServer
) -> None:
    """openai.md §1.18, P14."""
    prompt = script(*MID_ANSWER, mark)
    stream = client.chat.completions.create(model=wire_model, messages=[{"role": "user", "content": prompt}], stream=True)
    assert next(stream).choices[0].delta.role == "assistant"
    assert next(stream).choices[0].delta.content == "first"
    stream.close()
    assert model_server.ending(prompt, BOUND_S) == "cancelled"
    assert_cancelled(raw, stream.response.headers["x-workflow-id"])


@promise("leave.cancel", "sdk.close")
def test_closing_the_sdks_stream_before_the_first_word_closes_the_upstream(
    brisk_client: OpenAI, raw: Raw, mark: str, wire_model: str, model_server: ModelServer
) -> None:
    """openai.md §1.18, P14: before the first token too."""
    prompt = script("hang", mark)
    with brisk_client.chat.completions.create(
        model=wire_model, messages=[{"role": "user", "content": prompt}], stream=True
    ) as stream:
        run = stream.response.headers["x-workflow-id"]
        model_server.asked(prompt)
    assert model_server.ending(prompt, BOUND_S) == "cancelled"
    assert_cancelled(raw, run)


@promise("leave.cancel", "sdk.close")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_cancelling_the_task_that_waits_for_the_sdk_closes_the_upstream(
    async_client: AsyncOpenAI, mark: str, wire_model: str, model_server: ModelServer, stream: bool
) -> None:
    """openai.md §1.18, P14: headers have not come yet."""
    prompt = script("hang", mark)
    asking = asyncio.create_task(
        async_client.chat.completions.create(model=wire_model, messages=[{"role": "user", "content": prompt}], stream=stream)
    )
    await asyncio.to_thread(model_server.asked, prompt)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await asyncio.to_thread(model_server.ending, prompt, BOUND_S) == "cancelled"


@promise("leave.cancel", "sdk.close")
async def test_leaving_the_async_sdks_stream_closes_the_upstream(
    async_client: AsyncOpenAI, mark: str, wire_model: str, model_server: ModelServer
) -> None:
    """openai.md §1.18, P14."""
    prompt = script(*MID_ANSWER, mark)
    async with await async_client.chat.completions.create(
        model=wire_model, messages=[{"role": "user", "content": prompt}], stream=True
    ) as stream:
        async for chunk in stream:
            if chunk.choices[0].delta.content == "first":
                break
    assert await asyncio.to_thread(model_server.ending, prompt, BOUND_S) == "cancelled"


@promise("leave.cancel", "sdk.close")
def test_the_sdks_time_out_closes_the_upstream(client: OpenAI, mark: str, wire_model: str, model_server: ModelServer) -> None:
    """openai.md §1.18, P14: a whole answer that is not waited for."""
    prompt = script("hang", mark)
    with pytest.raises(APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(model=wire_model, messages=[{"role": "user", "content": prompt}])
    assert model_server.ending(prompt, BOUND_S) == "cancelled"


@promise("cancel.explicit", "cancel.replica")
@pytest.mark.parametrize("before", ["first word", "mid answer"])
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_explicit_cancel_closes_the_upstream_and_tells_the_reader(
    raw: Raw, raw_brisk: Raw, mark: str, wire_model: str, model_server: ModelServer, before: str, where: str
) -> None:
    """openai.md §3, §4, P14: asked of the server that runs it, or of another one. The reader is told, in-band or by status."""
    prompt = script(*(MID_ANSWER if before == "mid answer" else ("hang",)), mark)
    with raw_brisk.open("POST", CHAT, ask(wire_model, prompt, stream=True)) as response:
        headers = headers_of(response)
        model_server.asked(prompt)
        answer = (raw_brisk if where == "here" else raw).cancel(headers["x-workflow-id"])
        assert answer.status == 200
        assert answer.json["object"] == "chat.completion"
        assert model_server.ending(prompt, BOUND_S) == "cancelled"
        told = Answer(response.status, headers, response.read())
    assert told.error["code"] == "run_cancelled"
    assert complaints(told.body) == []
    assert_cancelled(raw, headers["x-workflow-id"])


@promise("cancel.once")
def test_cancelling_twice_is_once(raw: Raw, mark: str, wire_model: str, model_server: ModelServer) -> None:
    """P14: both are told that it is done; the log says it once, and has one ending."""
    prompt = script(*MID_ANSWER, mark)
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True, headgate_options={"events": True})) as response:
        run = headers_of(response)["x-workflow-id"]
        model_server.asked(prompt)
        answers = [raw.cancel(run) for _ in range(2)]
        assert [answer.status for answer in answers] == [200, 200]
        assert model_server.ending(prompt, BOUND_S) == "cancelled"
        response.read()
    answer = raw.resume(run)
    kinds = [event["type"] for each in answer.chunks for event in each.get("headgate_events", ())]
    assert kinds.count("WORKFLOW_CANCELLING") == 1
    assert answer.error["code"] == "run_cancelled"
    third = raw.cancel(run)
    assert (third.status, third.json["status"]) == (200, "cancelled")


@promise("cancel.too-late")
def test_cancelling_an_ended_run_is_a_conflict_and_changes_nothing(raw: Raw, model: str) -> None:
    """design.md §1.5: exactly one ending."""
    uncut = raw.chat(model, script('say "done"'))
    answer = raw.cancel(uncut.run)
    assert (answer.status, answer.error["code"], answer.headers["x-should-retry"]) == (409, "run_ended", "false")
    assert raw.resume(uncut.run).stream == uncut.stream


@promise("leave.continue")
@pytest.mark.parametrize(
    ("model_name", "fields"),
    [("stays", {}), ("wire", {"headgate_options": {"on_disconnect": "continue"}})],
    ids=["model", "request"],
)
def test_a_run_that_may_go_on_does(
    raw: Raw, mark: str, model_server: ModelServer, model_name: str, fields: dict[str, object]
) -> None:
    """design.md §7: `on_disconnect: continue`, said by the model or by the request."""
    prompt = script('say "first"', "wait 200ms", 'say " last"', mark)
    with raw.open("POST", CHAT, ask(model_name, prompt, stream=True, **fields)) as response:
        run = headers_of(response)["x-workflow-id"]
        take_frames(response, 1)
    assert model_server.ending(prompt) == "completed"
    assert raw.resume(run).text == "first last"


@promise("leave.grace")
def test_a_grace_period_ends_in_a_cancellation(raw: Raw, mark: str, wire_model: str, model_server: ModelServer) -> None:
    """design.md §7: cancelled when nobody came back in time, and not before."""
    prompt = script(*MID_ANSWER, mark)
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True, headgate_options={"on_disconnect": 0.4})) as response:
        run = headers_of(response)["x-workflow-id"]
        take_frames(response, 2)
    left = time.monotonic()
    assert model_server.ending(prompt, BOUND_S) == "cancelled"
    assert time.monotonic() - left > 0.3
    assert_cancelled(raw, run)


@promise("leave.grace")
def test_a_client_that_comes_back_within_its_grace_keeps_the_run(raw: Raw, wire_model: str) -> None:
    """design.md §7: it goes on, past what the grace period was."""
    prompt = script('say "first"', "wait 1200ms", 'say " last"')
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True, headgate_options={"on_disconnect": 0.8})) as response:
        run = headers_of(response)["x-workflow-id"]
        take_frames(response, 2)
    answer = raw.resume(run, 2)
    assert (answer.status, answer.text, answer.body.endswith(b"data: [DONE]\n\n")) == (200, " last", True)


@promise("leave.reader")
def test_a_reader_who_resumed_comes_and_goes_without_effect(raw: Raw, wire_model: str) -> None:
    """openai.md §1.18: only the requester's leaving counts."""
    prompt = script('say "first"', "wait 300ms", 'say " last"')
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True)) as response:
        run = headers_of(response)["x-workflow-id"]
        with raw.resuming(run) as reader:
            take_frames(reader, 2)
        rest = b"".join(take_frames(response, 5))
    assert b'" last"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")
