"""The rules of following a stream across connections, without any connection."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.wire.sse_decoder import ServerEvent
from headgate.errors import (
    BadAnswer,
    Forbidden,
    NotFound,
    RateLimited,
    Refused,
    ServerFailed,
    ServerGone,
    StreamGap,
    Unauthorized,
    refusal,
)
from headgate.events import Event, of_message, of_server_event
from headgate.following import Backoff, Following

RUN = "task-0123456789abcdef0123456789abcdef"
GONE = ServerGone("gone")


def event(seq: int, type: str = "LLM_PARTIAL", **fields: Any) -> Event:
    return Event(RUN, type, seq, f"1000-{seq}", "2026-11-20T12:00:00.000Z", **fields)


def aside(type: str, **payload: Any) -> Event:
    return Event(RUN, type, payload=payload)


def following(**options: Any) -> Following:
    return Following(RUN, **{"backoff": Backoff(), "server_known": False, **options})


class TestPosition:
    def test_asks_for_what_follows_the_last_event(self) -> None:
        reader = following(types=["LLM_PARTIAL", "X_MINE"])
        assert reader.query() == {"workflow_id": RUN, "types": "LLM_PARTIAL,X_MINE"}
        reader.take([event(1), event(2)])
        assert reader.query() == {"workflow_id": RUN, "types": "LLM_PARTIAL,X_MINE", "last_event_id": "1000-2"}

    @pytest.mark.parametrize(("given", "asked"), [(7, "7"), ("7", "7"), ("1000-7", "1000-7")])
    def test_begins_where_it_is_told_to(self, given: str | int, asked: str) -> None:
        assert following(last_event_id=given).query()["last_event_id"] == asked

    def test_ends_with_the_end_and_takes_nothing_after_it(self) -> None:
        reader = following()
        assert reader.take([event(1), event(2, "STREAM_END"), event(3)]) == ([event(1), event(2, "STREAM_END")], None)
        assert reader.ended

    def test_an_end_that_was_told_again_is_an_end_and_no_event(self) -> None:
        reader = following(last_event_id="1000-9")
        assert reader.take([aside("STREAM_END")]) == ([], None)
        assert reader.ended
        assert reader.position == "1000-9"


class TestGaps:
    GAP = aside("STREAM_GAP", missing_from=2, missing_to=4, resumes_at=5)

    def test_a_gap_is_raised_after_what_came_before_it(self) -> None:
        taken, error = following().take([event(1), self.GAP, event(5)])
        assert taken == [event(1)]
        assert isinstance(error, StreamGap)
        assert (error.missing_from, error.missing_to, error.resumes_at) == (2, 4, 5)
        assert str(error) == "Events from 2 to 4 are no longer available."

    def test_a_gap_can_be_skipped(self) -> None:
        assert following(gaps="skip").take([event(1), self.GAP, event(5)]) == ([event(1), event(5)], None)

    def test_a_gap_with_nothing_behind_it_cannot(self) -> None:
        _, error = following(gaps="skip").take([aside("STREAM_GAP", missing_from=2)])
        assert isinstance(error, StreamGap)
        assert str(error) == "Events from 2 on are no longer available."

    def test_a_gap_is_not_tried_again(self) -> None:
        with pytest.raises(StreamGap):
            following(server_known=True).lost(StreamGap(1, None, None))


class TestLosses:
    def test_pauses_double_to_thirty_seconds_and_start_over_with_progress(self) -> None:
        reader = following(server_known=True)
        assert [reader.lost(GONE).pause_s for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        reader.take([event(1)])
        loss = reader.lost(GONE)
        assert (loss.error, loss.position, loss.pause_s) == (GONE, "1000-1", 1.0)

    def test_a_connection_that_brings_nothing_is_no_progress(self) -> None:
        reader = following(server_known=True)
        reader.lost(GONE)
        reader.connected()
        reader.take([])
        assert reader.lost(GONE).pause_s == 2.0

    def test_a_million_failures_do_not_overflow(self) -> None:
        assert Backoff().pause_s(1_000_000) == 30.0

    def test_attempts_can_be_bounded(self) -> None:
        reader = following(server_known=True, backoff=Backoff(attempts=2))
        for _ in range(2):
            reader.lost(GONE)
        with pytest.raises(ServerGone):
            reader.lost(GONE)

    def test_an_address_where_nobody_ever_answered_is_a_mistake(self) -> None:
        reader = following()
        with pytest.raises(ServerGone):
            reader.lost(GONE)
        reader.connected()
        assert reader.lost(GONE).pause_s == 1.0

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 501])
    def test_what_another_attempt_cannot_change_is_raised_at_once(self, status: int) -> None:
        error = refusal(status, {})
        with pytest.raises(Refused) as raised:
            following(server_known=True).lost(error)
        assert raised.value is error

    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_a_server_in_trouble_is_asked_again(self, status: int) -> None:
        assert following().lost(refusal(status, {})).pause_s == 1.0

    @pytest.mark.parametrize(("after", "pause_s"), [("0", 1.0), ("7", 7.0), ("3600", 30.0), ("Fri, 20 Nov 2026", 1.0)])
    def test_waits_as_long_as_it_is_told_to_within_reason(self, after: str, pause_s: float) -> None:
        assert following().lost(refusal(503, {"retry-after": after})).pause_s == pause_s

    def test_a_stream_that_breaks_off_although_its_run_goes_on_is_resumed(self) -> None:
        reader = following()
        broken = aside("ERROR_OCCURRED", scope="stream", code="draining", retryable=True)
        taken, error = reader.take([event(1), broken])
        assert taken == [event(1)]
        assert isinstance(error, ServerFailed)
        assert reader.lost(error).pause_s == 1.0

    def test_unless_that_would_be_in_vain(self) -> None:
        reader = following(server_known=True)
        _, error = reader.take([aside("ERROR_OCCURRED", scope="stream", code="forbidden", retryable=False)])
        assert isinstance(error, Refused)
        with pytest.raises(Refused, match="forbidden"):
            reader.lost(error)

    def test_an_error_of_the_run_is_an_event(self) -> None:
        told = event(3, "ERROR_OCCURRED", payload={"scope": "agent"})
        assert following().take([told]) == ([told], None)


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "kind"), [(401, Unauthorized), (403, Forbidden), (404, NotFound), (429, RateLimited), (502, ServerFailed)]
    )
    def test_each_status_has_its_class(self, status: int, kind: type[Refused]) -> None:
        assert type(refusal(status, {})) is kind

    def test_says_what_the_server_says(self) -> None:
        body = b'{"error":{"code":"run_not_found","message":"No such run.","request_id":"req-1"}}'
        error = refusal(404, {}, body)
        assert (error.status, error.code, error.message, error.request_id) == (404, "run_not_found", "No such run.", "req-1")
        assert str(error) == "No such run. (run_not_found)"

    @pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "text"}', b"\xff"])
    def test_what_is_not_ours_is_told_by_its_status(self, body: bytes) -> None:
        error = refusal(502, {"x-request-id": "req-2"}, body)
        assert (error.message, error.code, error.request_id) == ("The server answered with HTTP status 502.", None, "req-2")


class TestEvents:
    def test_the_end_of_an_event_stream_has_its_position_beside_it(self) -> None:
        end = of_server_event(ServerEvent("[DONE]", "done", "1795178472622-9"), RUN, "1795178472622-8")
        assert end == Event(RUN, "STREAM_END", 9, "1795178472622-9", "2026-11-20T12:41:12.622Z")

    @pytest.mark.parametrize("said_id", ["", "1795178472622-8", "x-1", "17"])
    def test_without_a_new_position_it_is_told_again(self, said_id: str) -> None:
        said = ServerEvent("[DONE]", "done", said_id)
        assert of_server_event(said, RUN, "1795178472622-8") == Event(RUN, "STREAM_END")

    def test_both_transports_give_the_same_event(self) -> None:
        text = (
            f'{{"workflow_id":"{RUN}","seq":3,"stream_id":"5-3","type":"LLM_PARTIAL","timestamp":"t","agent_id":"a",'
            '"message":"\\u2028\\n é","payload":{"logprobs":{"x":[1,null]}},"new_field":1}'
        )
        expected = Event(RUN, "LLM_PARTIAL", 3, "5-3", "t", "a", "\u2028\n é", {"logprobs": {"x": [1, None]}})
        assert of_message(text) == expected
        assert of_server_event(ServerEvent(text, "thread.message.delta", "5-3"), RUN, "") == expected
        assert expected.task_id == RUN

    def test_answers_to_operations_are_not_events(self) -> None:
        assert of_message('{"op":"cancel","ok":true}') is None

    @pytest.mark.parametrize("text", ["", "{", "nonsense"])
    def test_garbage_is_not_an_event_either(self, text: str) -> None:
        with pytest.raises(BadAnswer):
            of_message(text)
        with pytest.raises(BadAnswer):
            of_server_event(ServerEvent(text), RUN, "")
