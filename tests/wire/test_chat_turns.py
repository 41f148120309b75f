"""Answers in turns, and what other agents say beside them: frame by frame, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

from gateway.wire.chat import ChatEncoder
from gateway.wire.completion import CompletionFold
from orchestrator.events import Entry
from orchestrator.runs import ChatOptions, Run
from orchestrator.streamlog.log import Position
from tests.wire.eventstream import read
from tests.wire.logs import AGENT, CREATED_MS, RUN_ID, LogBook, run

ASKED = {"approval_id": "ok", "step": "ok", "proposed_action": "pay", "expires_at": "2030"}


def turns() -> LogBook:
    """One agent speaks, people are asked, another one goes on; each said two words."""
    book = LogBook().started().text("Shall", " I?").output("Shall I?", tokens=(3, 2)).add("AGENT_COMPLETED", agent=AGENT)
    book.add("APPROVAL_REQUESTED", payload=ASKED).add("APPROVAL_DECISION", payload={"approval_id": "ok", "approved": True})
    book.add("AGENT_STARTED", agent=AGENT)
    return book.text("Done", ".").output("Done.", tokens=(5, 7)).completed("Done.")


def stream(book: LogBook, after: str | None = None, options: ChatOptions | None = None, **place: Any) -> bytes:
    return ChatEncoder(asked(options), turn_after=after, **place).encode(book.entries)


def asked(options: ChatOptions | None = None) -> Run:
    answering = run()
    return answering if options is None else Run(answering.id, "t", answering.model, (AGENT,), CREATED_MS, options=options)


def chunks(encoded: bytes) -> list[Any]:
    *data, done = [each.data for each in read(encoded)]
    assert done == "[DONE]"
    return [json.loads(each) for each in data]


def deltas(encoded: bytes) -> list[Any]:
    return [choice["delta"] for chunk in chunks(encoded) for choice in chunk["choices"]]


def whole(book: LogBook, after: str | None = None, options: ChatOptions | None = None) -> Any:
    fold = CompletionFold(asked(options), after)
    fold.feed(book.entries)
    return json.loads(fold.body())


def test_a_run_that_asks_ends_its_turn() -> None:
    first = chunks(stream(turns(), options=ChatOptions(include_usage=True)))
    call = first[3]["choices"][0]["delta"]["tool_calls"][0]
    assert call["id"] == f"call_{RUN_ID[5:]}_ok"
    assert call["function"]["name"] == "request_approval"
    assert json.loads(call["function"]["arguments"]) == {"approval_id": "ok", "proposed_action": "pay", "expires_at": "2030"}
    assert [choice["finish_reason"] for chunk in first for choice in chunk["choices"]] == [None] * 4 + ["tool_calls"]
    assert first[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert {chunk["id"] for chunk in first} == {f"chatcmpl-{RUN_ID[5:]}"}


def test_the_next_turn_has_what_is_its_own() -> None:
    encoded = stream(turns(), "ok", ChatOptions(include_usage=True))
    second = chunks(encoded)
    assert deltas(encoded) == [{"role": "assistant"}, {"content": "Done"}, {"content": "."}, {}]
    assert [choice["finish_reason"] for chunk in second for choice in chunk["choices"]][-1] == "stop"
    assert second[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert {chunk["id"] for chunk in second} == {f"chatcmpl-{RUN_ID[5:]}.ok"}


def test_whole_turns_say_what_the_streams_add_up_to() -> None:
    first, second = whole(turns()), whole(turns(), "ok")
    assert (first["id"], second["id"]) == (f"chatcmpl-{RUN_ID[5:]}", f"chatcmpl-{RUN_ID[5:]}.ok")
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert first["choices"][0]["message"]["content"] == "Shall I?"
    assert first["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "request_approval"
    assert first["usage"]["total_tokens"] == 5
    assert second["choices"][0]["finish_reason"] == "stop"
    assert second["choices"][0]["message"] == {"role": "assistant", "content": "Done.", "refusal": None}
    assert second["usage"]["total_tokens"] == 12


def test_approvals_beside_each_other_come_one_after_the_other() -> None:
    book = LogBook().started()
    for name in ("one", "two"):
        book.add("APPROVAL_REQUESTED", payload={"approval_id": name})
    book.text("Done").output("Done").completed("Done")
    called = [whole(book, after)["choices"][0]["message"].get("tool_calls") for after in (None, "one", "two")]
    assert [each and each[0]["id"].rpartition("_")[2] for each in called] == ["one", "two", None]


def test_a_turn_in_which_nothing_is_said_is_empty() -> None:
    """What the run came to was said in the turn before, and is not said again."""
    book = LogBook().started().text("All").output("All").add("APPROVAL_REQUESTED", payload=ASKED).completed("All")
    assert deltas(stream(book, "ok")) == [{"role": "assistant"}, {"content": ""}, {}]
    silent = LogBook().started().add("APPROVAL_REQUESTED", payload=ASKED).completed("Said by nobody")
    assert deltas(stream(silent, "ok"))[1] == {"content": "Said by nobody"}


def test_a_run_that_is_denied_fails_in_the_turn_of_the_decision() -> None:
    book = LogBook().started().add("APPROVAL_REQUESTED", payload=ASKED).cancelled(reason="'ok' was not approved by bob: no")
    encoder = ChatEncoder(asked(), turn_after="ok")
    encoder.encode(book.entries)
    assert encoder.failure is not None
    assert "'ok' was not approved by bob: no" in encoder.failure.message
    assert not encoder.begun
    assert chunks(stream(book))[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_every_turn_can_be_resumed_anywhere() -> None:
    book = turns()
    options = ChatOptions(stream_ids=True)
    for after in (None, "ok"):
        complete = stream(book, after, options)
        frames = [frame + b"\n\n" for frame in complete.split(b"\n\n")[:-1]]
        for have in range(len(frames) - 1):
            assert stream(book, after, options, skip_chunks=have) == b"".join(frames[have:])
        seen = b""
        for frame, event in zip(frames, read(complete), strict=True):
            seen += frame
            if event.data != "[DONE]" and frame.startswith(b"id:"):
                ms, _, seq = event.id.partition("-")
                place = Position(int(seq), int(ms))
                assert seen + ChatEncoder(asked(options), turn_after=after, after=place).encode(book.entries) == complete


def test_who_waits_has_one_turn() -> None:
    options = ChatOptions(wait=True)
    assert "tool_calls" not in json.dumps(deltas(stream(turns(), options=options)))
    assert [each.get("content") for each in deltas(stream(turns(), options=options))[1:-1]] == ["Shall", " I?", "Done", "."]


def test_who_waits_from_the_second_turn_on_has_that_turn() -> None:
    """A turn that begins after an approval used never to begin for a client that said so only then."""
    assert deltas(stream(turns(), "ok", ChatOptions(wait=True)))[1] == {"content": "Done"}


def test_a_waiting_stream_is_kept_alive_with_chunks() -> None:
    encoder = ChatEncoder(asked(ChatOptions(wait=True)))
    encoder.encode(turns().entries[:6])
    beats = [encoder.keepalive(silent_s) for silent_s in (10.0, 60.0, 70.0, 120.0)]
    assert [b'"headgate_keepalive":true' in beat for beat in beats] == [False, True, False, True]


def test_events_of_an_earlier_turn_are_not_told_again() -> None:
    options = ChatOptions(events=True)
    kinds = [event["type"] for chunk in chunks(stream(turns(), "ok", options)) for event in chunk.get("headgate_events", ())]
    assert kinds == ["APPROVAL_DECISION", "AGENT_STARTED", "AGENT_COMPLETED"]
    first = [event["type"] for chunk in chunks(stream(turns(), options=options)) for event in chunk.get("headgate_events", ())]
    assert first == ["WORKFLOW_STARTED", "AGENT_STARTED", "AGENT_COMPLETED"]


def test_text_that_is_void_is_counted_from_the_turn_on() -> None:
    book = LogBook().started().text("Shall I?").output("Shall I?").add("APPROVAL_REQUESTED", payload=ASKED)
    before = len("Shall I?")
    book.text("Done it").reset(before + 4).text("!").output("Done!").completed("Done!")
    assert whole(book, "ok")["choices"][0]["message"]["content"] == "Done!"
    fold = CompletionFold(asked(), "ok")
    fold.feed(LogBook().started().text("Shall I?").add("APPROVAL_REQUESTED", payload=ASKED).text("x").reset(2).entries)
    assert fold.failure is not None
    assert fold.failure.code == "output_reset"


# Other agents


def reasoning(book: LogBook, **options: bool) -> str:
    said = deltas(stream(book, options=ChatOptions(reasoning=True, **options)))
    return "".join(delta.get("reasoning_content", "") for delta in said)


def beside(book: LogBook, agent: str, *words: str) -> LogBook:
    for word in words:
        book.partial(word, agent=agent)
    return book


def test_another_agent_is_heard_while_it_speaks() -> None:
    book = beside(LogBook().started(), "helper", "one", " two")
    assert deltas_so_far(book.entries) == [{"role": "assistant"}, thought("[helper] one"), thought(" two")]
    book.output("one two", agent="helper").text("Answer").output("Answer").completed("Answer")
    assert reasoning(book) == "[helper] one two\n\n"
    assert whole(book, options=ChatOptions(reasoning=True))["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Answer",
        "refusal": None,
        "reasoning_content": "[helper] one two\n\n",
        "reasoning": "[helper] one two\n\n",
    }


def thought(text: str) -> dict[str, str]:
    return {"reasoning_content": text, "reasoning": text}


def deltas_so_far(entries: list[Entry]) -> list[Any]:
    encoded = ChatEncoder(asked(ChatOptions(reasoning=True))).encode(entries)
    return [json.loads(each.data)["choices"][0]["delta"] for each in read(encoded)]


def test_agents_that_speak_meanwhile_are_told_as_a_whole() -> None:
    """An agent that had begun while another spoke took over in the middle of its sentence, without its beginning."""
    book = beside(LogBook().started(), "a", "a1")
    beside(book, "b", "b1")
    beside(book, "a", " a2").output("a1 a2", agent="a")
    beside(book, "b", " b2")
    beside(book, "c", "c1")
    book.output("b1 b2", agent="b")
    beside(book, "c", " c2").output("c1 c2", agent="c")
    beside(book, "b", "b3").output("b3", agent="b").text("x").output("x").completed("x")
    assert reasoning(book) == "[a] a1 a2\n\n[c] c1\n\n[b] b1 b2\n\n c2\n\n[b] b3\n\n"


def test_an_agent_that_fails_makes_room() -> None:
    book = beside(LogBook().started(), "a", "a1").add("AGENT_FAILED", payload={"error": {}}, agent="a")
    beside(book, "b", "b1").output("b1", agent="b").text("x").output("x").completed("x")
    assert reasoning(book) == "[a] a1\n\n[b] b1\n\n"


def test_nobody_is_heard_unasked_and_the_answers_own_thoughts_stay() -> None:
    book = beside(LogBook().started(), "helper", "one").output("one", agent="helper")
    book.partial(reasoning="Hm").text("x").output("x", reasoning="Hm").completed("x")
    assert json.dumps(deltas(stream(book))).count("one") == 0
    assert [each for each in deltas(stream(book)) if "reasoning" in each] == [thought("Hm")]
    assert reasoning(book) == "[helper] one\n\nHm"


def test_an_archived_run_tells_the_same_in_blocks() -> None:
    book = beside(LogBook().started(), "helper", "one", " two").output("one two", agent="helper")
    book.text("x").output("x").completed("x")
    encoded = ChatEncoder(asked(ChatOptions(reasoning=True))).encode(book.archived())
    assert "".join(delta.get("reasoning_content", "") for delta in deltas(encoded)) == "[helper] one two\n\n"
