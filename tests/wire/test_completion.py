"""The whole completion, and that it says what the stream says: judged by the accumulation of the official SDK."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gateway.wire.chat import ChatEncoder
from gateway.wire.completion import CompletionFold
from orchestrator.events import Entry, Gap
from tests.wire.eventstream import read
from tests.wire.logs import CALLS, CREATED_MS, RUN_ID, LogBook, endings, plain, run


def whole(entries: list[Entry]) -> dict[str, Any]:
    fold = CompletionFold(run())
    fold.feed(entries)
    assert fold.ended
    assert fold.failure is None
    result: dict[str, Any] = json.loads(fold.body())
    return result


def accumulated(entries: list[Entry]) -> dict[str, Any]:
    """What a client has that adds up the chunks with the SDK."""
    stream = ChatEncoder(run(include_usage=True)).encode(entries)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for event in read(stream)[:-1]:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(event.data))
    return facts(state.current_completion_snapshot)


def facts(completion: ChatCompletion) -> dict[str, Any]:
    """Without nulls, and without what only one of the two ways of asking has."""
    out = completion.model_dump(exclude_none=True, exclude={"object"}, warnings=False)
    for choice in out["choices"]:
        choice["message"].pop("parsed", None)
        for call in choice["message"].get("tool_calls", ()):
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    return out


def test_a_plain_answer() -> None:
    assert whole(plain().entries) == {
        "id": "chatcmpl-" + RUN_ID[5:],
        "object": "chat.completion",
        "created": CREATED_MS // 1000,
        "model": "local/m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello world", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def test_content_is_null_when_there_are_only_tool_calls() -> None:
    (choice,) = whole(endings()["tools"].entries)["choices"]
    calls = [{key: value for key, value in call.items() if key != "index"} for call in CALLS]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None, "tool_calls": calls}
    assert choice["finish_reason"] == "tool_calls"


def test_all_that_a_message_can_have() -> None:
    books = endings()
    messages = {name: whole(book.entries)["choices"][0]["message"] for name, book in books.items()}
    assert messages["reasoning"]["reasoning_content"] == messages["reasoning"]["reasoning"] == "Hmm."
    assert messages["refusal"] == {"role": "assistant", "content": None, "refusal": "I won't"}
    assert messages["function"]["function_call"] == {"name": "add", "arguments": "{}"}
    assert messages["empty"]["content"] == ""
    assert messages["result only"]["content"] == "done"
    assert messages["two agents"]["content"] == "final"
    assert len(whole(books["logprobs"].entries)["choices"][0]["logprobs"]["content"]) == 2


def test_several_choices() -> None:
    choices = whole(endings()["choices"].entries)["choices"]
    said = [(each["index"], each["message"]["content"], each["message"]["refusal"], each["finish_reason"]) for each in choices]
    assert said == [(0, "one", None, "stop"), (1, "two", None, "length"), (2, None, "no", "stop")]


@pytest.mark.parametrize("name", endings())
def test_the_sum_of_the_chunks_is_the_completion(name: str) -> None:
    entries = endings()[name].entries
    assert accumulated(entries) == facts(ChatCompletion.model_validate(whole(entries)))


@pytest.mark.parametrize("name", sorted(endings().keys() - {"logprobs", "logprobs alone"}))
def test_the_archive_has_the_same_completion(name: str) -> None:
    """All but logprobs, which these logs have in deltas only."""
    book = endings()[name]
    if name == "unicode":
        book = LogBook().started().text("日本").output("日本").completed()
    assert whole(book.archived()) == whole(book.entries)


texts = st.text(max_size=5)
deltas = st.one_of(
    st.builds(lambda choice, text: (text, {"choice": choice}), st.integers(0, 2), texts.filter(bool)),
    st.builds(lambda text: (None, {"reasoning": text}), texts),
    st.builds(lambda choice, text: (None, {"choice": choice, "refusal": text}), st.integers(0, 1), texts),
    st.builds(lambda text: (text, {"agent": "helper"}), texts),
)


@given(said=st.lists(deltas, max_size=12), output=st.none() | texts, finish=st.sampled_from(["stop", "length", None, "odd"]))
def test_any_answer_adds_up(said: list[tuple[str | None, dict[str, Any]]], output: str | None, finish: str | None) -> None:
    book = LogBook().started()
    for message, more in said:
        book.partial(message, **more)
    entries = book.output(output, finish=finish).completed("r").entries
    assert accumulated(entries) == facts(ChatCompletion.model_validate(whole(entries)))


def test_a_reset_takes_text_back() -> None:
    book = LogBook().started().text("Hello", " wurld").reset(7).text("orld").output("Hello world").completed()
    assert whole(book.entries)["choices"][0]["message"]["content"] == "Hello world"


def test_a_reset_to_0_takes_everything_back() -> None:
    book = LogBook().started().text("no").partial(reasoning="hm", tool_calls=CALLS).reset(0).text("yes").output("yes").completed()
    (choice,) = whole(book.entries)["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes", "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("book", "code", "status"),
    [
        (LogBook().started().text("a").failed(code="upstream_cut", message="Cut.", status=502), "upstream_cut", 502),
        (LogBook().started().cancelled(), "run_cancelled", 409),
        (LogBook().started().partial("a", choice="x"), "malformed_event", 500),
    ],
)
def test_a_failed_run_is_a_failure(book: LogBook, code: str, status: int) -> None:
    fold = CompletionFold(run())
    fold.feed(book.entries)
    assert fold.ended
    assert fold.failure is not None
    assert (fold.failure.code, fold.failure.status) == (code, status)


def test_a_gap_is_a_failure() -> None:
    fold = CompletionFold(run())
    fold.feed([*plain().entries[:2], Gap(3, 4, 5), *plain().entries[4:]])
    assert fold.failure is not None
    assert fold.failure.code == "stream_gap"


def test_it_has_not_ended_before_the_ending() -> None:
    fold = CompletionFold(run())
    fold.feed(plain().entries[:-2])
    assert not fold.ended


@pytest.mark.parametrize(
    ("book", "text"),
    [
        (LogBook().text("one ").output("one ", finish="tool_calls").text("two").output("two", offset=4), "one two"),
        (
            LogBook().text("one ").output("one ", finish="tool_calls").text("x").reset(4).text("two").output("two", offset=4),
            "one two",
        ),
        (
            LogBook().text("one ").output("one ", finish="tool_calls").text("x").reset(0, again=4).text("one ", "two")
            .output("two", offset=4),
            "one two",
        ),
        (LogBook().text("one two").output("one two").output("one two", offset=0), "one two"),
        (LogBook().text("one two").output("one two").reset(4).text("three").output("one three", offset=0), "one three"),
        (LogBook().text("one two").output("one two").reset(0).text("three").output("three", offset=0), "three"),
        (
            LogBook().text("one ").output("one ", finish="tool_calls").text("two").output("two", finish=None, offset=4)
            .output("one ", finish="tool_calls", offset=0).reset(4).text("three").output("three", offset=4),
            "one three",
        ),
    ],
    ids=["turns", "turn-differs", "turns-again", "visit-repeats", "visit-differs", "visit-differs-at-once", "visit-of-turns"],
)  # fmt: skip
def test_an_answer_said_in_turns_or_twice_reads_the_same_with_and_without_its_deltas(book: LogBook, text: str) -> None:
    """Agents with tools say an answer in turns, agents of repeated steps say theirs again. The output of each call was once taken
    for text that follows all that was there, so that "one two" became "one threehree"."""
    book.completed(text)
    for entries in (book.entries, book.archived()):
        fold = CompletionFold(run())
        fold.feed(entries)
        assert fold.object()["choices"][0]["message"]["content"] == text
