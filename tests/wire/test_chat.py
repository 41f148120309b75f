"""Whole streams, frame by frame. One test per rule that a client punishes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.wire.chat import ChatEncoder
from orchestrator.errors import Failure
from orchestrator.events import Entry, Gap
from tests.wire.eventstream import read
from tests.wire.logs import CALLS, CREATED_MS, RUN_ID, LogBook, endings, plain, run

HEAD = (
    'data: {"id":"chatcmpl-0192f0c1a2b37abc8def0123456789ab","object":"chat.completion.chunk",'
    '"created":1730000000,"model":"local/m","choices":['
)
DONE = "data: [DONE]\n\n"


def chunk(delta: str, index: int = 0, finish: str = "null", logprobs: str = "null", after: str = "") -> str:
    choice = f'{{"index":{index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}}}'
    return f"{HEAD}{choice}]{after}}}\n\n"


def role(index: int = 0, after: str = "") -> str:
    return chunk('{"role":"assistant"}', index, after=after)


def content(text: str, index: int = 0, after: str = "") -> str:
    return chunk('{"content":' + json.dumps(text) + "}", index, after=after)


def finish(reason: str = "stop", index: int = 0, after: str = "") -> str:
    return chunk("{}", index, f'"{reason}"', after=after)


def encode(book: LogBook, **options: bool) -> str:
    return ChatEncoder(run(**options)).encode(book.entries).decode()


def chunks(stream: str | bytes) -> list[Any]:
    stream = stream.encode() if isinstance(stream, str) else stream
    return [json.loads(event.data) for event in read(stream) if event.data != "[DONE]"]


def error(message: str, type: str, code: str, param: str | None = None) -> str:
    return "data: " + json.dumps(
        {"error": {"message": message, "type": type, "param": param, "code": code}}, separators=(",", ":")
    ) + "\n\n"  # fmt: skip


def test_a_plain_answer_is_role_deltas_finish_done() -> None:
    assert encode(plain()) == role() + content("Hello") + content(" world") + finish() + DONE


def test_the_role_comes_first_and_once_per_choice() -> None:
    """Missing: the JS helper throws. Repeated: "assistantassistant"."""
    for name, book in endings().items():
        seen: dict[int, list[str | None]] = {}
        for chunk in chunks(encode(book)):
            for choice in chunk["choices"]:
                seen.setdefault(choice["index"], []).append(choice["delta"].get("role"))
        for roles in seen.values():
            assert roles == ["assistant"] + [None] * (len(roles) - 1), name


def test_id_created_and_model_are_constant() -> None:
    for book in endings().values():
        facts = {(c["id"], c["object"], c["created"], c["model"]) for c in chunks(encode(book, include_usage=True))}
        assert facts == {("chatcmpl-" + RUN_ID[5:], "chat.completion.chunk", CREATED_MS // 1000, "local/m")}


def test_usage_is_asked_for_or_absent_and_comes_in_one_last_chunk() -> None:
    null = ',"usage":null'
    usage = HEAD + '],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    asked = role(after=null) + content("Hello", after=null) + content(" world", after=null) + finish(after=null) + usage + DONE
    assert encode(plain(), include_usage=True) == asked
    assert '"usage"' not in encode(plain())


def test_usage_is_the_sum_over_all_agents_with_details_where_known() -> None:
    *_, last = chunks(encode(endings()["two agents"], include_usage=True))
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 13,
        "completion_tokens": 22,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
        "estimated": True,
    }


def test_usage_of_a_run_without_calls_is_what_its_ending_says() -> None:
    book = LogBook().started().completed("x", usage={"prompt_tokens": 1, "completion_tokens": 2})
    assert chunks(encode(book, include_usage=True))[-1]["usage"]["total_tokens"] == 3


def test_tool_deltas_have_an_index_and_name_things_once_and_carry_no_nulls() -> None:
    book = (
        LogBook()
        .started()
        .partial(
            tool_calls=[
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "add", "arguments": None}},
                {"index": 0, "id": "call_a", "type": None, "function": {"name": "add", "arguments": '{"a":'}},
            ]
        )
        .partial(tool_calls=[{"index": 0, "id": None, "function": {"name": None, "arguments": "1}"}}])
        .completed()
    )
    first = '{"tool_calls":[{"index":0,"id":"call_a","type":"function","function":{"name":"add","arguments":""}}]}'
    assert encode(book) == (
        role()
        + chunk(first)
        + chunk('{"tool_calls":[{"index":0,"function":{"arguments":"{\\"a\\":"}}]}')
        + chunk('{"tool_calls":[{"index":0,"function":{"arguments":"1}"}}]}')
        + finish("tool_calls")
        + DONE
    )


def test_one_tool_per_chunk() -> None:
    book = LogBook().started().partial(tool_calls=CALLS).completed()
    tools = [c["choices"][0]["delta"].get("tool_calls") for c in chunks(encode(book))]
    assert tools == [None, [CALLS[0]], [CALLS[1]], None]


@pytest.mark.parametrize(
    ("upstream_says", "client_reads"),
    [("stop", "tool_calls"), (None, "tool_calls"), ("eos", "tool_calls"), ("tool_calls", "tool_calls"), ("length", "length")],
)
def test_tool_calls_finish_as_tool_calls_unless_they_were_cut(upstream_says: str | None, client_reads: str) -> None:
    book = LogBook().started().partial(tool_calls=CALLS).output("", finish=upstream_says).completed()
    assert encode(book).endswith(finish(client_reads) + DONE)


@pytest.mark.parametrize(
    ("upstream_says", "client_reads"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop"), (None, "stop")],
)
def test_only_known_finish_reasons_leave(upstream_says: str | None, client_reads: str) -> None:
    assert encode(LogBook().started().text("a").output("a", finish=upstream_says).completed()).endswith(
        finish(client_reads) + DONE
    )


def test_a_legacy_function_call_finishes_as_function_call() -> None:
    assert encode(endings()["function"]) == (
        role()
        + chunk('{"function_call":{"name":"add","arguments":""}}')
        + chunk('{"function_call":{"arguments":"{}"}}')
        + finish("function_call")
        + DONE
    )


def test_every_choice_has_all_four_keys_and_delta_is_an_object() -> None:
    for book in endings().values():
        for each in chunks(encode(book)):
            for choice in each["choices"]:
                assert list(choice) == ["index", "delta", "logprobs", "finish_reason"]
                assert isinstance(choice["delta"], dict)


def test_with_several_choices_choice_0_appears_first_and_each_has_role_and_finish() -> None:
    assert encode(endings()["choices"]) == (
        role(0)
        + role(1)
        + content("tw", 1)
        + content("one")
        + content("o", 1)
        + role(2)
        + chunk('{"refusal":"no"}', 2)
        + finish("stop", 0)
        + finish("length", 1)
        + finish("stop", 2)
        + DONE
    )


def test_reasoning_goes_out_under_both_names() -> None:
    assert encode(endings()["reasoning"]) == (
        role()
        + chunk('{"reasoning_content":"Hm","reasoning":"Hm"}')
        + chunk('{"reasoning_content":"m.","reasoning":"m."}')
        + content("Yes")
        + finish()
        + DONE
    )


def test_logprobs_go_with_their_content_or_alone() -> None:
    one = '{"content":[{"token":"Hi","logprob":-0.1,"bytes":[72,105],"top_logprobs":[]}],"refusal":null}'
    assert encode(endings()["logprobs"]) == role() + chunk('{"content":"Hi"}', logprobs=one) * 2 + finish() + DONE
    assert encode(endings()["logprobs alone"]) == role() + content("Hi") + chunk("{}", logprobs=one) + finish() + DONE


def test_a_finished_call_says_what_its_deltas_did_not() -> None:
    assert encode(endings()["half deltaed"]) == role() + content("Hello") + content(" world") + finish() + DONE
    assert encode(endings()["undeltaed"]) == (
        role()
        + chunk('{"reasoning_content":"Hm","reasoning":"Hm"}')
        + content("Hello world")
        + "".join(chunk('{"tool_calls":[' + json.dumps(call, separators=(",", ":")) + "]}") for call in CALLS)
        + finish("tool_calls")
        + DONE
    )


def test_an_archived_log_gives_every_choice_from_the_finished_call() -> None:
    archived = ChatEncoder(run()).encode(endings()["choices"].archived()).decode()
    assert archived == (
        role(0)
        + content("one")
        + role(1)
        + content("two", 1)
        + role(2)
        + chunk('{"refusal":"no"}', 2)
        + finish("stop", 0)
        + finish("length", 1)
        + finish("stop", 2)
        + DONE
    )


def test_an_answer_of_two_calls_reads_the_same_from_the_archive() -> None:
    book = LogBook().started().text("one ").output("one ").text("two").output("two").completed()
    assert encode(book) == role() + content("one ") + content("two") + finish() + DONE
    assert ChatEncoder(run()).encode(book.archived()).decode() == encode(book)


def test_a_call_that_broke_off_does_not_count_as_said_twice() -> None:
    """An output without finish reason is there for its tokens; the call that follows says the whole text."""
    book = LogBook().started().text("one ").output("one ", finish=None).text("two").output("one two").completed()
    assert encode(book) == role() + content("one ") + content("two") + finish() + DONE


def test_a_run_that_only_has_a_result_answers_with_it() -> None:
    assert encode(endings()["result only"]) == role() + content("done") + finish() + DONE
    as_json = encode(LogBook().started().completed({"a": [1]}))
    assert as_json == role() + content('{"a":[1]}') + finish() + DONE


def test_an_empty_answer_is_the_empty_text() -> None:
    assert encode(endings()["empty"]) == role() + content("") + finish() + DONE


def test_an_empty_delta_is_a_delta() -> None:
    book = LogBook().started().text("a", "", "b").output("ab").completed()
    assert encode(book) == role() + content("a") + content("") + content("b") + finish() + DONE


def test_other_events_and_recoverable_errors_are_nothing() -> None:
    assert encode(endings()["noise"]) == role() + content("a") + content("b") + finish() + DONE


def test_events_ride_on_empty_deltas_when_asked_for() -> None:
    book = endings()["noise"]
    shown = [1, 2, 4, 5, 7, 9]
    frames = {
        entry.seq: chunk("{}", after=',"headgate_events":[' + entry.envelope(RUN_ID).decode() + "]").replace("\u2028", "\\u2028")
        for entry in book.entries
    }
    told = [frames[seq] for seq in shown]
    assert encode(book, events=True) == (
        role() + told[0] + told[1] + content("a") + told[2] + told[3] + content("b") + told[4] + told[5] + finish() + DONE
    )


def test_ids_are_on_the_last_chunk_of_each_event_and_only_when_asked_for() -> None:
    book = plain()
    ids = ["id: " + entry.stream_id + "\n" for entry in book.entries]
    assert encode(book, stream_ids=True) == (
        role() + ids[2] + content("Hello") + ids[3] + content(" world") + ids[6] + finish() + DONE
    )
    assert "id: " not in encode(book)


def test_failure_before_any_output_is_known_to_the_door() -> None:
    book = LogBook().started().failed(code="upstream_rejected", message="No.", status=429, type="rate_limit_error")
    encoder = ChatEncoder(run())
    assert encoder.encode(book.entries).decode() == error("No.", "rate_limit_error", "upstream_rejected")
    assert encoder.ended
    assert not encoder.begun
    assert encoder.failure is not None
    assert encoder.failure.status == 429


def test_failure_after_output_is_one_error_event_and_neither_finish_nor_done() -> None:
    book = LogBook().started().text("a").failed(code="upstream_cut", message="Cut.", type="upstream_error", status=502)
    encoder = ChatEncoder(run())
    assert encoder.encode(book.entries).decode() == role() + content("a") + error("Cut.", "upstream_error", "upstream_cut")
    assert encoder.begun
    assert encoder.encode(book.entries) == b""
    assert encoder.keepalive(600) == b""


def test_a_stream_that_is_broken_off_says_so_once() -> None:
    encoder = ChatEncoder(run())
    broken = encoder.encode(plain().entries[:3]) + encoder.interrupt(Failure("draining", "Going."))
    assert broken.decode() == role() + content("Hello") + error("Going.", "server_error", "draining")
    assert encoder.interrupt(Failure("draining", "Going.")) + encoder.encode(plain().entries[3:]) == b""
    ended = ChatEncoder(run())
    ended.encode(plain().entries)
    assert ended.interrupt(Failure("draining", "Going.")) == b""


def test_a_failure_that_says_nothing_is_still_a_failure() -> None:
    for book in (LogBook().started().add("WORKFLOW_FAILED"), LogBook().started().failed(status="x"), LogBook().add("STREAM_END")):
        encoder = ChatEncoder(run())
        encoder.encode(book.entries)
        assert encoder.failure is not None
        assert encoder.failure.status == 500


def test_a_cancelled_run_ends_with_run_cancelled() -> None:
    book = LogBook().started().text("a").cancelled(reason="enough")
    assert encode(book) == role() + content("a") + error(
        "The run was cancelled: enough", "invalid_request_error", "run_cancelled"
    )


def test_a_reset_of_text_that_was_sent_is_an_error() -> None:
    *_, last = chunks(encode(LogBook().started().text("abc").reset(2).text("x").completed()))
    assert last["error"]["code"] == "output_reset"


@pytest.mark.parametrize(
    "book",
    [
        LogBook().started().text("abc").reset(3).text("d").output("abcd").completed(),
        LogBook().started().text("abc").reset(0, choice=1).text("d").output("abcd").completed(),
    ],
)
def test_a_reset_of_text_that_was_not_sent_is_nothing(book: LogBook) -> None:
    assert encode(book) == role() + content("abc") + content("d") + finish() + DONE


@pytest.mark.parametrize(
    "payload", [{"reasoning": "hm"}, {"tool_calls": CALLS}, {"refusal": "no"}, {"function_call": {"name": "f"}}]
)
def test_a_reset_to_0_unsays_everything_else_too(payload: dict[str, Any]) -> None:
    *_, last = chunks(encode(LogBook().started().partial(**payload).reset(0).completed()))
    assert last["error"]["code"] == "output_reset"


def test_a_gap_is_an_error() -> None:
    encoder = ChatEncoder(run())
    items: list[Entry | Gap] = [*plain().entries[:3], Gap(4, 5, 6), *plain().entries[5:]]
    *_, last = chunks(encoder.encode(items))
    assert last["error"]["code"] == "stream_gap"
    assert encoder.ended


@pytest.mark.parametrize(
    "payload",
    [
        {"choice": "x"},
        {"choice": -1},
        {"choice": 10**9},
        {"tool_calls": {}},
        {"tool_calls": [1]},
        {"reasoning": 1},
        {"logprobs": []},
    ],
)
def test_an_event_that_cannot_be_read_is_an_honest_failure(payload: dict[str, Any]) -> None:
    encoder = ChatEncoder(run())
    encoder.encode(LogBook().started().partial("a", **payload).entries)
    assert encoder.failure is not None
    assert encoder.failure.code == "malformed_event"


def test_obfuscation_pads_deltas_and_depends_on_the_log_alone() -> None:
    stream = encode(plain(), include_obfuscation=True)
    assert stream == encode(plain(), include_obfuscation=True)
    said = [event.data for event in read(stream.encode()) if '"content"' in event.data]
    assert [len(data) % 64 for data in said] == [0, 0]
    assert all('"obfuscation":"' in data for data in said)
    bare = [{key: value for key, value in each.items() if key != "obfuscation"} for each in chunks(stream)]
    assert bare == chunks(encode(plain()))


def test_line_ends_of_other_alphabets_are_escaped() -> None:
    """U+2028 and its like inside JSON break every reader built on splitlines."""
    assert encode(endings()["unicode"]) == (
        role()
        + chunk('{"content":"naïve "}')
        + chunk('{"content":"日本"}')
        + chunk('{"content":"\\u2028\\u2029\\u0085"}')
        + chunk('{"content":"🙂"}')
        + finish()
        + DONE
    )
