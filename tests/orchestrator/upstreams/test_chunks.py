"""What chunks mean: whole lists of pieces for the ways in which servers differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.upstreams.chunks import AnswerReader
from orchestrator.upstreams.rejections import Scrubber, reported
from orchestrator.upstreams.upstream import (
    Delta,
    Finish,
    Note,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    Usage,
)


def reader(choices: int = 1) -> AnswerReader:
    return AnswerReader(lambda data: reported(data, Scrubber("", ())), choices)


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, "logprobs": None}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice], **more}).encode()


def read(*events: bytes, choices: int = 1) -> list[Piece]:
    answer = reader(choices)
    pieces = answer.read([*events, b"[DONE]"])
    assert answer.done
    return pieces


NO_USAGE = Note("no_usage")
ROLE = chunk({"role": "assistant", "content": ""})


def test_an_ordinary_answer() -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1, "audio_tokens": 0},
    }
    last = json.dumps({"choices": [], "usage": usage}).encode()
    assert read(ROLE, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk(finish="stop"), last) == [
        Delta(0, "Hel"),
        Delta(0, "lo"),
        Finish(0, "stop"),
        Usage(3, 5, 8, 2, 1),
    ]


def test_an_empty_first_delta_says_nothing_and_a_later_one_is_passed_on() -> None:
    assert read(ROLE, chunk({"content": "a"}), chunk({"content": ""}), chunk({"content": None}), chunk({}, "stop")) == [
        Delta(0, "a"),
        Delta(0, ""),
        Finish(0, "stop"),
        NO_USAGE,
    ]


def test_usage_on_every_chunk_is_given_once_and_last() -> None:
    """Servers that report running totals would be counted many times over."""
    events = [
        chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": 1}),
        chunk({"content": "b"}, "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}),
    ]
    assert read(*events) == [Delta(0, "a"), Delta(0, "b"), Finish(0, "stop"), Usage(3, 2, 5)]


@pytest.mark.parametrize(
    ("delta", "piece"),
    [
        ({"reasoning_content": "hm"}, Delta(0, reasoning="hm")),
        ({"reasoning": "hm"}, Delta(0, reasoning="hm")),
        ({"reasoning_content": "hm", "reasoning": "hm"}, Delta(0, reasoning="hm")),
        ({"reasoning_content": "", "reasoning": "hm"}, Delta(0, reasoning="hm")),
        ({"refusal": "no"}, Delta(0, refusal="no")),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, Delta(0, "ab")),
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, Delta(0, reasoning="hm")),
        ({"function_call": {"name": "f", "arguments": None}}, Delta(0, function_call={"name": "f"})),
        ({"content": "a", "audio": {"id": 1}, "unheard_of": [1]}, Delta(0, "a")),
    ],
)
def test_fields_of_a_delta(delta: dict[str, Any], piece: Delta) -> None:
    assert read(chunk(delta), chunk(finish="stop")) == [piece, Finish(0, "stop"), NO_USAGE]


def test_logprobs_go_with_their_text() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": []}], "refusal": None}
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": logprobs}]}).encode()
    assert read(event, chunk(finish="stop"))[0] == Delta(0, "a", logprobs=logprobs)


def test_each_choice_ends_for_itself() -> None:
    events = [chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk(finish="stop"), chunk(finish="length", index=1)]
    assert read(*events, choices=2) == [Delta(0, "a"), Delta(1, "b"), Finish(0, "stop"), Finish(1, "length"), NO_USAGE]


@pytest.mark.parametrize(
    ("sent", "finish", "notes"),
    [
        ("stop", "stop", []),
        ("eos", "stop", []),
        ("END_TURN", "stop", []),
        ("max_tokens", "length", []),
        ("tool_use", "tool_calls", []),
        ("content_filter", "content_filter", []),
        ("function_call", "function_call", []),
        ("because", "stop", [Note("unknown_finish_reason")]),
    ],
)
def test_finish_reasons(sent: str, finish: str, notes: list[Note]) -> None:
    assert read(chunk({"content": "a"}, sent)) == [Delta(0, "a"), *notes, Finish(0, finish), NO_USAGE]


@pytest.mark.parametrize("sent", ["error", "abort", "insufficient_system_resource"])
def test_a_finish_that_is_a_failure_never_looks_like_stop(sent: str) -> None:
    answer = reader()
    assert answer.read([chunk({"content": "a"}, sent), b"[DONE]"]) == [Delta(0, "a")]
    assert isinstance(answer.failure, UpstreamCut)
    assert not answer.done


def test_a_repeated_finish_counts_once_and_output_after_it_is_noted() -> None:
    events = [chunk({"content": "a"}, "stop"), chunk({"content": ""}, "stop"), chunk({"content": "b"})]
    assert read(*events) == [Delta(0, "a"), Finish(0, "stop"), Note("output_after_finish"), Delta(0, "b"), NO_USAGE]


def tool(delta: dict[str, Any]) -> bytes:
    return chunk({"tool_calls": [delta]})


def calls(*events: bytes) -> list[dict[str, Any]]:
    return [call for piece in read(*events) if isinstance(piece, Delta) for call in piece.tool_calls or ()]


def test_tool_calls_as_openai_sends_them() -> None:
    events = [
        chunk({"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "c1", "type": "function"}]}),
        tool({"index": 0, "function": {"name": "f", "arguments": ""}}),
        tool({"index": 0, "function": {"arguments": '{"a":'}}),
        tool({"index": 0, "function": {"arguments": "1}"}}),
        chunk(finish="tool_calls"),
    ]
    assert read(*events) == [
        Delta(0, tool_calls=[{"index": 0, "id": "c1", "type": "function"}]),
        Delta(0, tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}]),
        Delta(0, tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        Delta(0, tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        Finish(0, "tool_calls"),
        NO_USAGE,
    ]


def test_tool_calls_make_stop_a_lie_but_not_length() -> None:
    event = tool({"index": 0, "id": "c1", "function": {"name": "f", "arguments": "{"}})
    assert read(event, chunk(finish="stop"))[1] == Finish(0, "tool_calls")
    assert read(event, chunk(finish="length"))[1] == Finish(0, "length")
    assert read(event)[1:3] == [Note("no_finish_reason"), Finish(0, "tool_calls")]


def test_repeated_ids_and_nulls_are_dropped() -> None:
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    again = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "}"}}
    nulls = {"index": 0, "id": None, "type": None, "function": {"name": None, "arguments": " "}}
    empty = {"index": 0, "id": "", "function": {"name": "", "arguments": None}}
    assert calls(tool(head), tool(again), tool(nulls), tool(empty)) == [
        head,
        {"index": 0, "function": {"arguments": "}"}},
        {"index": 0, "function": {"arguments": " "}},
    ]


def test_a_missing_index_is_found_by_id_and_order() -> None:
    first = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{"}}
    second = {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{"}}
    assert calls(
        tool(first), tool({"function": {"arguments": "}"}}), tool(second), tool({"id": "c1", "function": {"arguments": "!"}})
    ) == [
        {"index": 0, **first},
        {"index": 0, "function": {"arguments": "}"}},
        {"index": 1, **second},
        {"index": 0, "function": {"arguments": "!"}},
    ]


def test_another_id_under_the_same_index_goes_on_as_sent() -> None:
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    second = {"index": 0, "id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert calls(tool(first), tool(second)) == [first, second]


def test_nothing_is_invented() -> None:
    sent = {"index": 0, "function": {"name": "f", "arguments": "{never: parses"}, "extra_content": {"google": {"signature": "s"}}}
    assert calls(tool(sent)) == [sent]


def test_arguments_that_are_no_text_become_text() -> None:
    assert (
        calls(tool({"index": 0, "id": "c", "function": {"name": "f", "arguments": {"a": 1}}}))[0]["function"]["arguments"]
        == '{"a":1}'
    )


def test_two_calls_in_one_chunk_become_two_deltas() -> None:
    both = [{"index": 0, "id": "a", "function": {"name": "f"}}, {"index": 1, "id": "b", "function": {"name": "g"}}]
    assert read(chunk({"content": "x", "tool_calls": both}))[:3] == [
        Delta(0, "x"),
        Delta(0, tool_calls=[both[0]]),
        Delta(0, tool_calls=[both[1]]),
    ]


def test_one_broken_line_is_counted_and_the_rest_is_read() -> None:
    assert read(chunk({"content": "a"}), b'{"choices": [{', chunk({"content": "b"}, "stop")) == [
        Delta(0, "a"),
        Note("broken_line"),
        Delta(0, "b"),
        Finish(0, "stop"),
        NO_USAGE,
    ]


BROKEN = [b"{", b'"text"', b"{}}", b'{"choices": 7}', b'{"choices":[{"delta":{"content":"\xff"}}]}', b"[" * 100_000, b"nonsense"]


@pytest.mark.parametrize("broken", BROKEN)
def test_two_broken_lines_in_a_row_are_too_many(broken: bytes) -> None:
    answer = reader()
    assert answer.read([broken, broken, chunk({"content": "b"})]) == [Note("broken_line"), Note("broken_line")]
    assert isinstance(answer.failure, UpstreamGarbled)


def test_broken_lines_now_and_then_are_too_many_in_the_end() -> None:
    answer = reader()
    answer.read([b"{", chunk({"content": "a"})] * 3)
    assert answer.failure is None
    answer.read([b"{"])
    assert isinstance(answer.failure, UpstreamGarbled)


def test_empty_events_are_nothing() -> None:
    assert read(b"", b" ", chunk({"content": "a"}, "stop")) == [Delta(0, "a"), Finish(0, "stop"), NO_USAGE]


@pytest.mark.parametrize(
    ("event", "status", "code", "message"),
    [
        ({"error": {"message": "Overloaded", "type": "overloaded_error", "code": None}}, 503, "upstream_rejected", "Overloaded"),
        ({"error": {"message": "Slow down", "code": 429}}, 429, "rate_limit_exceeded", "Slow down"),
        ({"error": "out of memory", "error_type": "generation"}, 502, "upstream_rejected", "out of memory"),
        ({"object": "error", "message": "bad", "type": "BadRequestError", "code": 400}, 400, "upstream_rejected", "bad"),
        ({"error": {"message": "m", "code": "c"}, "choices": []}, 502, "c", "m"),
    ],
)
def test_an_error_in_the_stream_is_a_failure_after_what_came_before(event: Any, status: int, code: str, message: str) -> None:
    answer = reader()
    assert answer.read([chunk({"content": "a"}), json.dumps(event).encode(), chunk({"content": "b"})]) == [Delta(0, "a")]
    failure = answer.failure
    assert isinstance(failure, UpstreamRejected)
    assert (failure.status, failure.code, failure.message) == (status, code, message)


def test_done_without_a_finish_is_completed_and_noted() -> None:
    assert read(chunk({"content": "a"})) == [Delta(0, "a"), Note("no_finish_reason"), Finish(0, "stop"), NO_USAGE]


def test_the_end_of_the_body() -> None:
    """Complete when every choice has ended; cut otherwise, and never `stop`."""
    answer = reader()
    answer.read([chunk({"content": "a"}, "stop")])
    assert answer.end() == [Note("no_done"), NO_USAGE]
    for choices, events in ((1, [chunk({"content": "a"})]), (1, []), (2, [chunk({"content": "a"}, "stop")])):
        answer = reader(choices)
        answer.read(events)
        with pytest.raises(UpstreamCut):
            answer.end()


def test_a_last_event_without_its_blank_line() -> None:
    answer = reader()
    assert answer.end(b"data: " + chunk({"content": "a"}, "stop")) == [
        Delta(0, "a"),
        Finish(0, "stop"),
        Note("no_done"),
        NO_USAGE,
    ]
    assert reader().end(b"data: [DONE]\n") == [Note("no_finish_reason"), Finish(0, "stop"), NO_USAGE]
    answer = reader()
    answer.read([chunk({"content": "a"})])
    with pytest.raises(UpstreamCut):
        answer.end(b"data: " + chunk({"content": "b"}, "stop")[:-9])


def failure_of_end(rest: bytes) -> UpstreamError | None:
    answer = reader()
    try:
        answer.end(rest)
    except UpstreamError as error:
        return error
    return answer.failure


def test_a_body_that_is_no_event_stream() -> None:
    assert isinstance(failure_of_end(b"Bad gateway"), UpstreamGarbled)
    assert isinstance(failure_of_end(b'{"error": {"message": "no"}}'), UpstreamRejected)
    assert isinstance(failure_of_end(b'{"hello": 1}'), UpstreamGarbled)


def test_a_whole_answer() -> None:
    tools = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}] * 2
    message = {"role": "assistant", "content": "hi", "tool_calls": tools, "refusal": None}
    whole = {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert reader().read_whole(json.dumps({**whole, "usage": usage}).encode()) == [
        Delta(0, "hi"),
        Delta(0, tool_calls=[{"index": 0, **tools[0]}]),
        Delta(0, tool_calls=[{"index": 1, **tools[1]}]),
        Finish(0, "tool_calls"),
        Usage(1, 2, 3),
    ]
