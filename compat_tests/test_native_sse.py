"""The native event stream, byte by byte: what only this door promises (native.md §3)."""

from __future__ import annotations

import json
import re
from http.client import HTTPResponse

import pytest

from compat_tests.doors import MISSING, SSE, Event, Server
from compat_tests.manifest import promise
from compat_tests.raw import Answer, script, take_frames
from compat_tests.stage import staged

NAMES = {
    "LLM_PARTIAL": "thread.message.delta",
    "LLM_OUTPUT": "thread.message.completed",
    "WORKFLOW_PAUSING": "workflow.pausing",
    "WORKFLOW_PAUSED": "workflow.paused",
    "WORKFLOW_RESUMED": "workflow.resumed",
    "WORKFLOW_CANCELLING": "workflow.cancelling",
    "WORKFLOW_CANCELLED": "workflow.cancelled",
    "STREAM_END": "done",
}


def whole(server: Server, run: str, query: str = "", **headers: str) -> Answer:
    """A stream, to its end."""
    return server.raw.send("GET", f"{SSE}?workflow_id={run}{query}", headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.fixture(scope="session")
def ended(here: Server) -> str:
    run = here.submit("demo-none", script('tokens "a" "b" "c"'))
    assert whole(here, run).status == 200
    return run


@promise("sse.headers", "sse.opening")
def test_a_stream_opens_with_its_headers_and_how_long_to_wait_before_coming_back(here: Server) -> None:
    """native.md §3: at once, although the run is silent; the wait is jittered so that not all come back together."""
    waits = set()
    with staged(here) as stage:
        for _ in range(8):
            with here.raw.open("GET", f"{SSE}?workflow_id={stage.run}") as response:
                assert response.status == 200
                assert response.headers["Content-Type"].split(";")[0] == "text/event-stream"
                assert response.headers["Cache-Control"] == "no-cache, no-transform"
                assert response.headers["X-Accel-Buffering"] == "no"
                assert response.headers["X-Workflow-ID"] == stage.run
                assert response.headers["x-request-id"]
                assert response.readline() == b": connected\n"
                waits.add(int(re.fullmatch(rb"retry: ([0-9]+)\n", response.readline())[1]))  # type: ignore[index]
    assert all(1000 <= ms <= 3000 for ms in waits)
    assert len(waits) > 1


@promise("sse.frames", "sse.names", "event.all-types", "event.types", "doors.live")
def test_an_event_is_an_id_a_name_and_one_line(here: Server) -> None:
    """native.md §3: whole frames, live, for every type of §2 and the publisher's own; `error` is nobody's name."""
    with staged(here) as stage, here.raw.open("GET", f"{SSE}?workflow_id={stage.run}") as response:
        assert take_frames(response, 2)[0].startswith(b"retry: ")
        for kind in PUBLISHABLE:
            payload = {"approval_id": f"of {kind}", "text": "a\nb\r\u2028\u0085c"}
            stage.say(kind, "one\r\n\ntwo\u2029", payload, agent_id="writer")
            (frame,) = take_frames(response, 1)
            assert frame == framed(stage.log()[-1])
        stage.say("LLM_PARTIAL")
        assert take_frames(response, 1) == [framed(stage.log()[-1])]
        before = len(stage.log())
        stage.cancel()
        rest = read_rest(response)
        last = stage.log()[before:]
        assert rest == [framed(event) for event in last]
        assert {"WORKFLOW_CANCELLING", "WORKFLOW_CANCELLED", "STREAM_END"} <= {event["type"] for event in last}


PUBLISHABLE = re.findall(
    r"\w+",
    "ERROR_OCCURRED STATUS_UPDATE AGENT_STARTED AGENT_COMPLETED AGENT_FAILED AGENT_THINKING "
    "AGENT_RETRYING LLM_PROMPT LLM_PARTIAL LLM_OUTPUT OUTPUT_RESET TOOL_INVOKED TOOL_OBSERVATION "
    "TOOL_ERROR PROGRESS DATA_PROCESSING WAITING TEAM_STATUS DEPENDENCY_SATISFIED ERROR_RECOVERY WARNING "
    "BUDGET_THRESHOLD DELEGATION ROLE_ASSIGNED TEAM_RECRUITED TEAM_RETIRED MESSAGE_SENT MESSAGE_RECEIVED "
    "WORKSPACE_UPDATED TASKLIST_UPDATED LEAD_DECISION LEAD_TOOL_CALL HITL_RESPONSE APPROVAL_REQUESTED "
    "RESEARCH_PLAN_READY RESEARCH_PLAN_UPDATED RESEARCH_PLAN_APPROVED REVIEW_USER_FEEDBACK X_MINE ",
)
"""native.md §2, less what only the engine says."""


def framed(event: Event) -> bytes:
    """The frame of an event, as the contract spells it. The data is compared with the log's, member by member."""
    data = dict(event)
    if event["type"] == "LLM_PARTIAL":
        data["delta"] = event.get("message", "")
    if event["type"] == "LLM_OUTPUT":
        data |= {"response": event.get("message", ""), "metadata": event.get("payload", {})}
    line = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for separator in "\u2028\u2029\u0085":
        line = line.replace(separator, f"\\u{ord(separator):04x}")
    if event["type"] == "STREAM_END":
        line = "[DONE]"
    name = NAMES.get(str(event["type"]), event["type"])
    return f"id: {event['stream_id']}\nevent: {name}\ndata: {line}\n\n".encode()


def read_rest(response: HTTPResponse) -> list[bytes]:
    return [frame + b"\n\n" for frame in response.read().replace(b": keepalive\n", b"").split(b"\n\n")[:-1]]


@promise("sse.raw-names")
def test_a_client_may_ask_for_the_types_as_names(here: Server, ended: str) -> None:
    """native.md §3: `names=raw`, for all of them; nothing else changes. Another value is a mistake."""
    usual, raw = whole(here, ended).events, whole(here, ended, "&names=raw").events
    log = here.log(ended)
    assert [event.event for event in raw] == [event["type"] for event in log]
    assert [event.event for event in usual] == [NAMES.get(event["type"], event["type"]) for event in log]
    assert [event._replace(event="") for event in raw] == [event._replace(event="") for event in usual]
    assert whole(here, ended, "&names=cooked").status == 400


@promise("sse.keepalive")
def test_silence_is_filled_with_comments(there: Server) -> None:
    """native.md §3: every ten seconds, here every tenth of one."""
    with staged(there) as stage, there.raw.open("GET", f"{SSE}?workflow_id={stage.run}") as response:
        take_frames(response, 2)
        assert [response.readline() for _ in range(3)] == [b": keepalive\n"] * 3
        stage.say("PROGRESS")
        assert take_frames(response, 1) == [framed(stage.log()[-1])]


@promise("sse.done", "doors.ended")
def test_after_done_the_server_closes(here: Server, ended: str) -> None:
    """native.md §3: the body ends; from the last position as well."""
    stream = whole(here, ended).body
    assert stream.endswith(b"event: done\ndata: [DONE]\n\n")
    again = whole(here, ended, f"&last_event_id={here.log(ended)[-1]['stream_id']}").body
    assert re.fullmatch(rb": connected\nretry: [0-9]+\nevent: done\ndata: \[DONE\]\n\n", again)


@promise("sse.last-event-id")
def test_the_header_wins(here: Server, ended: str) -> None:
    """native.md §3: `Last-Event-ID` is what a browser knows better; empty it says nothing, and twice it is a mistake."""
    log = here.log(ended)
    places = [event["stream_id"] for event in log]

    def ids(query: str, **headers: str) -> list[str]:
        return [event.id for event in whole(here, ended, query, **headers).events]

    assert ids("&last_event_id=1", Last_Event_ID=places[3]) == places[4:]
    assert ids("", Last_Event_ID="3") == places[3:]
    assert ids("&last_event_id=3", Last_Event_ID="") == places[3:]
    assert ids("&last_event_id=", Last_Event_ID="") == ids("") == places
    assert whole(here, ended, "", Last_Event_ID="nonsense").json["error"]["code"] == "invalid_position"


@promise("native.errors", "doors.no-run")
@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, None),
        ("?workflow_id=", 400, None),
        (f"?workflow_id={MISSING}&last_event_id=x", 400, "invalid_position"),
        (f"?workflow_id={MISSING}&types=NOPE", 400, "unknown_event_type"),
        (f"?workflow_id={MISSING}&workflow_id={MISSING}", 400, None),
        (f"?workflow_id={MISSING}", 404, "run_not_found"),
    ],
)
def test_what_is_refused_is_an_http_error(here: Server, query: str, status: int, code: str | None) -> None:
    """native.md §3, §5: before the first byte of a stream, with `{code, message, request_id}`."""
    answer = here.raw.send("GET", SSE + query)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json.keys() == {"error"}
    assert answer.error.keys() == {"code", "message", "request_id"}
    assert answer.error["request_id"] == answer.headers["x-request-id"]
    assert code in (None, answer.error["code"])
