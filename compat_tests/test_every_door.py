"""One truth at all doors: the same events at the same positions, from wherever a reader begins."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice

import pytest

from compat_tests.doors import DOORS, MISSING, Door, Event, Refused, Server
from compat_tests.manifest import promise
from compat_tests.performed import (
    RUNS,
    Performed,
    logged,
    logged_ending,
    perform,
    text_of,
    told,
    told_ending,
    tool_calls_of,
)
from compat_tests.raw import CHAT, script
from compat_tests.watch import seen, shown

ENDS = ("WORKFLOW_COMPLETED", "WORKFLOW_FAILED", "WORKFLOW_CANCELLED", "STREAM_END")

Performing = Callable[[str], Performed]


@pytest.fixture(scope="session")
def performing(here: Server) -> Callable[[str, str], Performed]:
    done: dict[tuple[str, str], Performed] = {}

    def performed(model: str, golden: str) -> Performed:
        if (model, golden) not in done:
            done[model, golden] = perform(here, model, golden)
        return done[model, golden]

    return performed


@pytest.fixture
def performed(performing: Callable[[str, str], Performed]) -> Performing:
    """A golden run of the durable model. Reading its log does not tell who wrote it."""
    return lambda golden: performing("demo", golden)


# The same truth


@promise("doors.same-events", "event.envelope")
@pytest.mark.parametrize("golden", RUNS)
@pytest.mark.parametrize("model_name", ["demo", "wire-none"])
def test_every_door_shows_every_event_of_the_log(
    here: Server, there: Server, performing: Callable[[str, str], Performed], door: Door, model_name: str, golden: str
) -> None:
    """native.md §1, P5, P8: one envelope, at every replica."""
    done = performing(model_name, golden)
    for server in (here, there):
        assert seen(door, server, done.run) == shown(door, done.log)


@promise("event.envelope")
@pytest.mark.parametrize("golden", RUNS)
def test_an_event_is_an_envelope(performed: Performing, golden: str) -> None:
    """native.md §1: these fields and no others; `seq` without holes, positions that only grow, times in UTC."""
    done = performed(golden)
    for seq, event in enumerate(done.log, 1):
        assert {"workflow_id", "type", "timestamp", "seq", "stream_id"} <= event.keys()
        assert event.keys() <= {"workflow_id", "type", "timestamp", "seq", "stream_id", "agent_id", "message", "payload"}
        assert (event["workflow_id"], event["seq"]) == (done.run, seq)
        ms, _, number = event["stream_id"].partition("-")
        assert int(number) == seq
        assert event["type"] == event["type"].upper()
        assert time.strptime(event["timestamp"][:19], "%Y-%m-%dT%H:%M:%S")
        assert (len(event["timestamp"]), event["timestamp"][-1]) == (24, "Z")
        assert abs(int(ms) / 1000 - time.time()) < 600
    places = [int(event["stream_id"].partition("-")[0]) for event in done.log]
    assert places == sorted(places)


@promise("event.order", "event.one-ending", "event.facts")
@pytest.mark.parametrize("golden", RUNS)
def test_a_run_says_what_it_does_in_order_and_ends_once(performed: Performing, golden: str) -> None:
    """native.md §2, P13: a plain chat run, its one ending and the end of its stream."""
    types = [event["type"] for event in performed(golden).log]
    told = [kind for place, kind in enumerate(types) if kind != "LLM_PARTIAL" or types[place - 1] != kind]
    endings = {
        "refused": ["AGENT_FAILED", "WORKFLOW_FAILED"],
        "failing": ["LLM_PARTIAL", "LLM_OUTPUT", "AGENT_FAILED", "WORKFLOW_FAILED"],
        "timed out": ["LLM_PARTIAL", "LLM_OUTPUT", "AGENT_FAILED", "WORKFLOW_FAILED"],
        "cancelled": ["LLM_PARTIAL", "WORKFLOW_CANCELLING", "LLM_OUTPUT", "WORKFLOW_CANCELLED"],
        "empty": ["LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED"],
    }
    usual = ["LLM_PARTIAL", "LLM_OUTPUT", "AGENT_COMPLETED", "WORKFLOW_COMPLETED"]
    assert told == ["WORKFLOW_STARTED", "AGENT_STARTED", *endings.get(golden, usual), "STREAM_END"]
    assert [kind for kind in types if kind in ENDS] == types[-2:]
    _assert_facts(performed(golden).log)


def _assert_facts(log: Sequence[Event]) -> None:
    """What the payloads of a plain run have to say."""
    usage = {"prompt_tokens", "completion_tokens", "total_tokens", "estimated"}
    for event in log:
        payload = event.get("payload", {})
        match event["type"]:
            case "LLM_OUTPUT":
                assert {"call_id", "model", "upstream", "usage", "duration_ms"} <= payload.keys()
                assert usage <= payload["usage"].keys()
            case "WORKFLOW_COMPLETED":
                assert {"result", "usage", "finish_reason", "duration_ms"} <= payload.keys()
                assert usage <= payload["usage"].keys()
            case "WORKFLOW_FAILED":
                assert {"code", "message", "retryable"} <= payload["error"].keys()


@promise("event.timeout")
def test_a_time_out_is_a_failure_that_says_so(here: Server, performed: Performing) -> None:
    """native.md §2."""
    done = performed("timed out")
    assert (done.log[-2]["type"], done.log[-2]["payload"]["error"]["code"]) == ("WORKFLOW_FAILED", "timeout")
    assert here.task(done.run)["status"] == "TIMEOUT"


@promise("doors.chat-truth")
@pytest.mark.parametrize("golden", RUNS)
@pytest.mark.parametrize("model_name", ["demo", "wire-none"])
def test_the_chat_door_tells_the_same_story(
    here: Server, performing: Callable[[str, str], Performed], model_name: str, golden: str
) -> None:
    """P5: text, reasoning, refusals, tool calls, usage, finish reasons, their order and their positions."""
    done = performing(model_name, golden)
    pieces = logged(done.log)
    assert told(done.chat) == pieces
    assert told_ending(done.chat) == logged_ending(done.log)
    ending = done.log[-2]
    if ending["type"] == "WORKFLOW_COMPLETED":
        output = next(event for event in done.log if event["type"] == "LLM_OUTPUT")
        assert text_of(pieces) == output["message"] == ending["payload"]["result"] == here.task(done.run)["result"]
        assert tool_calls_of(pieces) == output["payload"].get("tool_calls", [])
        assert text_of(pieces, "reasoning") == output["payload"].get("reasoning", "")
        assert text_of(pieces, "refusal") == output["payload"].get("refusal", "")
    if usage := [chunk["usage"] for chunk in done.chat.chunks if chunk.get("usage")] if done.chat.status == 200 else []:
        assert ending["payload"]["usage"].items() >= usage[0].items()


# From wherever a reader begins


@promise("doors.resume", "doors.replica")
@pytest.mark.parametrize("golden", RUNS)
def test_a_reader_goes_on_after_any_event(here: Server, there: Server, performed: Performing, door: Door, golden: str) -> None:
    """design.md §1, P5, P8: by `stream_id` here and by `seq` at a replica, each event, once, in order."""
    done = performed(golden)
    for event in done.log[:-1]:
        rest = shown(door, done.log[event["seq"] :])
        assert seen(door, here, done.run, event["stream_id"]) == rest
        assert seen(door, there, done.run, str(event["seq"])) == rest
    assert seen(door, here, done.run, "0") == shown(door, done.log)


@promise("doors.ended")
@pytest.mark.parametrize("golden", ["text", "refused", "cancelled"])
def test_whoever_had_everything_is_told_so_at_once(
    here: Server, there: Server, performed: Performing, door: Door, golden: str
) -> None:
    """native.md §3: a finished run from its last position ends and never idles."""
    done = performed(golden)
    last = done.log[-1]
    for server, place in ((here, last["stream_id"]), (there, str(last["seq"]))):
        begun = time.monotonic()
        assert [event["type"] for event in seen(door, server, done.run, place)] in (["STREAM_END"], [])
        assert time.monotonic() - begun < 1


@promise("doors.across")
@pytest.mark.parametrize("golden", ["text", "unicode", "tools", "two choices", "failing", "cancelled"])
def test_a_stream_begun_at_the_chat_door_is_continued_at_two_others(
    here: Server, there: Server, performed: Performing, golden: str
) -> None:
    """P5: chat, then WebSocket by `stream_id`, then gRPC by `seq`: wherever it is cut, nothing is missing and nothing twice."""
    done = performed(golden)
    pieces = told(done.chat)
    for count, last in enumerate(pieces, 1):
        if last.stream_id in (piece.stream_id for piece in pieces[count:]):
            continue  # the event has more to say
        with DOORS["websocket"].read(there, done.run, last.stream_id) as events:
            middle = list(islice(events, 2))
        rest = seen(DOORS["grpc"], here, done.run, str(middle[-1]["seq"]))
        assert pieces[:count] + logged(middle) + logged(rest) == logged(done.log)
        assert [*middle, *rest][-2:] == list(done.log[-2:])


@promise("doors.live", "doors.replica")
def test_readers_join_a_live_run_at_every_event(here: Server, there: Server, wire_model: str, door: Door) -> None:
    """P3: replay, then live, with no hole and no repeat; also for those who come before the first word."""
    run = here.submit(wire_model, script("rate 40/s", "say 10 words"))
    servers = cycle((there, here))
    with door.read(here, run) as events, ThreadPoolExecutor(20) as readers:
        first = readers.submit(seen, door, there, run)
        received: list[Event] = []
        joined = []
        for event in events:
            received.append(event)
            place = event["stream_id"] if len(received) % 2 else str(len(received))
            joined.append(readers.submit(seen, door, next(servers), run, place))
        log = here.log(run)
        assert received == first.result() == shown(door, log)
        for count, reader in enumerate(joined[:-1], 1):
            assert reader.result() == received[count:]


@promise("doors.filter")
@pytest.mark.parametrize("golden", ["text", "refused", "cancelled"])
def test_a_filter_hides_neither_endings_nor_places(here: Server, performed: Performing, door: Door, golden: str) -> None:
    """native.md §3, design.md §1.2: only what is asked for, from wherever, and how the run ended in any case."""
    done = performed(golden)
    for types in (["LLM_OUTPUT", "AGENT_STARTED"], ["X_NOBODY_SAYS_THIS"]):
        for event in done.log[:-1]:
            rest = [each for each in done.log[event["seq"] :] if each["type"] in (*types, *ENDS)]
            assert seen(door, here, done.run, event["stream_id"], types) == shown(door, rest)


@promise("doors.filter", "doors.live")
def test_a_filter_that_hides_all_of_a_living_run_still_shows_its_end(here: Server, wire_model: str, door: Door) -> None:
    """design.md §1.2: the cursor moves on every event, shown or not."""
    run = here.submit(wire_model, script("rate 100/s", "say 10 words"))
    assert [event["type"] for event in seen(door, here, run, types=["X_NOTHING"])] == ["WORKFLOW_COMPLETED", "STREAM_END"]


# Refusals


@promise("doors.unknown-run")
@pytest.mark.parametrize("run", [MISSING, "nobody", "task-", MISSING.upper(), "../x", "a\u2028b", "x" * 2000])
def test_a_run_that_is_not_there_is_refused_at_once(here: Server, there: Server, door: Door, run: str) -> None:
    """native.md §3, §4, §6: not after half a minute, and not in-band."""
    begun = time.monotonic()
    for server in (here, there):
        with pytest.raises(Refused) as refused:
            seen(door, server, run)
        assert (refused.value.status, refused.value.code) == (404, "run_not_found")
    assert time.monotonic() - begun < 2


@promise("doors.foreign-run")
def test_another_tenants_run_is_like_one_that_never_was(
    there: Server, mallory: Server, performed: Performing, door: Door
) -> None:
    """design.md §1.8: to read, to resume and to control."""
    run = performed("text").run
    assert seen(door, there, run)
    with pytest.raises(Refused) as refused:
        seen(door, mallory, run)
    assert (refused.value.status, refused.value.code) == (404, "run_not_found")
    for op in ("cancel", "pause", "resume"):
        with pytest.raises(Refused) as refused:
            door.ask(mallory, run, op, "mine now")
        assert (refused.value.status, refused.value.code) == (404, "run_not_found")


@promise("doors.no-run")
def test_a_stream_of_nothing_is_a_mistake(here: Server, door: Door) -> None:
    """native.md §3, §4, §6: `workflow_id` is missing."""
    with pytest.raises(Refused) as refused:
        seen(door, here, "")
    assert refused.value.status == 400


@promise("doors.bad-position")
@pytest.mark.parametrize("place", ["nonsense", "-5", "1.0", "1-", "-", "1-2-3", "0x1", "1 ", "9" * 23, "\u0663", "1-\u0663"])
def test_what_cannot_be_a_position_is_refused(here: Server, performed: Performing, door: Door, place: str) -> None:
    """native.md §3, design.md §1.4: never guessed."""
    with pytest.raises(Refused) as refused:
        seen(door, here, performed("text").run, place)
    assert (refused.value.status, refused.value.code) == (400, "invalid_position")


@promise("doors.gone-position")
@pytest.mark.parametrize("place", ["999", "1-1", "99999999999999-3", "another"])
def test_a_position_that_names_no_event_is_a_gap(
    here: Server, there: Server, performed: Performing, door: Door, place: str
) -> None:
    """design.md §1.4, P4: never the continuation of something else. What there is follows, from its beginning."""
    done = performed("text")
    if place == "another":
        place = performed("usage").log[3]["stream_id"]
    after = int(place.rpartition("-")[2])
    for server in (here, there):
        gap, *rest = seen(door, server, done.run, place)
        assert (gap["type"], gap["workflow_id"]) == ("STREAM_GAP", done.run)
        assert gap["payload"] == {"missing_from": after + 1, "missing_to": None, "resumes_at": 1}
        assert rest == shown(door, done.log)


@promise("doors.bad-types")
def test_a_type_that_no_event_has_is_refused(here: Server, performed: Performing, door: Door) -> None:
    """native.md §3: it would be a wish that nobody hears."""
    for types in (["NOPE"], ["LLM_OUTPUT", "llm_partial"], ["x_mine"]):
        with pytest.raises(Refused) as refused:
            seen(door, here, performed("text").run, types=types)
        assert (refused.value.status, refused.value.code) == (400, "unknown_event_type")


@promise("doors.key")
def test_no_door_opens_without_a_key(nobody: Server, there: Server, performed: Performing, door: Door) -> None:
    """native.md §6, design.md §1.8: on streams as well, and whatever is asked for."""
    for run in (performed("text").run, MISSING, ""):
        with pytest.raises(Refused) as refused:
            seen(door, nobody, run)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert seen(door, there, performed("text").run)


@promise("doors.reader-leaves")
def test_readers_come_and_go_without_effect(here: Server, wire_model: str, door: Door) -> None:
    """openai.md §1.18: only the requester's leaving counts, and at these doors nobody's."""
    run = here.submit(wire_model, script('say "first"', "wait 200ms", 'say " last"'))
    with door.read(here, run) as events:
        assert next(event for event in events if event["type"] == "LLM_PARTIAL")["message"] == "first"
    assert seen(door, here, run)[-2]["payload"]["result"] == "first last"


@promise("event.private")
def test_events_have_no_secrets(here: Server, door: Door) -> None:
    """native.md §1: never the system prompt, the context, or a credential."""
    messages = [
        {"role": "system", "content": "canary-system"},
        {"role": "user", "content": script('say "hi"', "# canary-prompt")},
    ]
    answer = here.raw.send("POST", CHAT, {"model": "wire", "messages": messages, "stream": True})
    said = json.dumps(seen(door, here, answer.run))
    assert "hi" in said
    assert "canary" not in said
    assert "sk-upstream" not in said
