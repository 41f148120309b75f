"""One truth at the chat door: a stream that was cut anywhere goes on with the very bytes that are missing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from compat_tests.goldens import GOLDENS
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import CHAT, Answer, Raw, ask, headers_of, parts, script, take_frames
from compat_tests.rules import Asked, complaints

IDS = {"X-Headgate-Stream-Ids": "true"}


@pytest.fixture(params=("demo", "wire-none"))
def resumed_model(request: pytest.FixtureRequest) -> str:
    """Durable and scripted, or neither. Resuming reads a log, and a log does not tell who wrote it."""
    return str(request.param)


@promise("resume.count", "resume.replica")
@pytest.mark.parametrize("golden", GOLDENS)
def test_a_cut_at_every_byte_is_continued_by_counting_chunks(raw: Raw, raw_brisk: Raw, resumed_model: str, golden: str) -> None:
    """openai.md §3, P5, P8: `starting_after=N`, at the server that gave the stream and at another one."""
    run = GOLDENS[golden]
    uncut = raw.chat(resumed_model, run.prompt, **run.fields)
    assert complaints(uncut.body, run.asked) == []
    total = len(uncut.frames)
    rests = {(server, count): server.resume(uncut.run, count) for server in (raw, raw_brisk) for count in range(total)}
    for cut in range(len(uncut.stream)):
        count, received = parts(uncut.stream, cut)
        for server in (raw, raw_brisk):
            rest = rests[server, count]
            assert rest.status == 200
            assert b"".join(received) + rest.stream == uncut.stream


@promise("resume.event-id", "resume.replica")
@pytest.mark.parametrize("golden", GOLDENS)
def test_a_cut_at_every_byte_is_continued_after_the_last_event_id(
    raw: Raw, raw_brisk: Raw, resumed_model: str, golden: str
) -> None:
    """openai.md §3, P5, P8: `Last-Event-ID`. What came after that id is sent again, for it belongs to the next event."""
    run = GOLDENS[golden]
    uncut = raw.chat(resumed_model, run.prompt, headers=IDS, **run.fields)
    assert complaints(uncut.body, run.asked._replace(ids=True)) == []
    places: dict[str, int] = {"": 0}
    for number, frame in enumerate(uncut.frames, 1):
        if frame.startswith(b"id: "):
            places[frame[4:].split(b"\n")[0].decode()] = number
    assert len(places) > 1
    for event_id, number in places.items():
        for server in (raw, raw_brisk):
            rest = server.resume(uncut.run, event_id=event_id)
            assert (rest.status, rest.stream) == (200, b"".join(uncut.frames[number:]))


@promise("resume.live", "resume.replica")
def test_readers_join_a_live_stream_at_every_place(
    raw: Raw, raw_brisk: Raw, wire_model: str, mark: str, model_server: ModelServer
) -> None:
    """openai.md §3, P3, P5, P8: replay, then live, with no hole and no repeat, and nothing is asked upstream again."""
    prompt = script("rate 40/s", "say 12 words", mark)
    servers = (raw, raw_brisk)
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True)) as original, ThreadPoolExecutor(16) as readers:
        run = headers_of(original)["x-workflow-id"]
        received: list[bytes] = []
        joined = []
        for count in range(12):
            joined.append(readers.submit(servers[count % 2].resume, run, count))
            received += take_frames(original, 1)
        rest = Answer(200, headers_of(original), original.read())
        uncut = b"".join(received) + rest.stream
        assert complaints(uncut) == []
        for count, reader in enumerate(joined):
            assert b"".join(received[:count]) + reader.result().stream == uncut
    assert len(model_server.calls(prompt)) == 1


@promise("resume.count", "resume.live")
def test_an_answer_larger_than_what_is_kept_in_memory_is_read_by_the_slow_and_the_late(
    raw: Raw, raw_brisk: Raw, wire_model: str, mark: str, model_server: ModelServer
) -> None:
    """design.md §1.3, P15: 20,000 words are 4 MB, the reader begins when all are said, and others join anywhere."""
    prompt = script("say 20000 words", mark)
    with raw.open("POST", CHAT, ask(wire_model, prompt, stream=True)) as response:
        assert model_server.ending(prompt) == "completed"
        slow = Answer(response.status, headers_of(response), response.read())
    assert (len(slow.frames), complaints(slow.body)) == (20_003, [])
    for server in (raw, raw_brisk):
        for count in (0, 1, 777, 19_999, 20_002):
            assert server.resume(slow.run, count).stream == b"".join(slow.frames[count:])


@promise("resume.live", "leave.continue")
@pytest.mark.parametrize("cut", [0, 1, 50, 333, 700])
def test_a_run_that_goes_on_is_picked_up_where_its_client_fell_off(raw: Raw, raw_brisk: Raw, wire_model: str, cut: int) -> None:
    """openai.md §3, P5: the socket breaks after so many bytes, the run lives, and its client comes back to another server."""
    body = ask(wire_model, script("rate 100/s", "say 20 words"), stream=True, headgate_options={"on_disconnect": "continue"})
    with raw.open("POST", CHAT, body) as response:
        run = headers_of(response)["x-workflow-id"]
        received = response.read(cut)
    count, whole = parts(received, len(received))
    rest = raw_brisk.resume(run, count)
    uncut = raw.resume(run)
    assert b"".join(whole) + rest.stream == uncut.stream
    assert complaints(uncut.body) == []


@promise("resume.whole")
@pytest.mark.parametrize("golden", [name for name in GOLDENS if name != "failing"])
def test_the_completion_of_an_ended_run_is_what_was_answered(raw: Raw, raw_brisk: Raw, model: str, golden: str) -> None:
    """openai.md §3: `GET /v1/chat/completions/{id}` as JSON, byte for byte, at every server."""
    run = GOLDENS[golden]
    answer = raw.chat(model, run.prompt, **{**run.fields, "stream": False, "stream_options": None})
    assert answer.status == 200
    for server in (raw, raw_brisk):
        for name in (answer.run, answer.json["id"]):
            again = server.retrieve(name)
            assert (again.status, again.body) == (200, answer.body)
            assert again.headers["x-workflow-id"] == answer.run


@promise("resume.whole", "errors.upstream-status")
def test_the_completion_of_a_failed_run_is_its_error(raw: Raw, model: str) -> None:
    """openai.md §3: a failed run is an HTTP error of its class."""
    prompt = script('status 429 retry-after 3 "Slow down."')
    asked, again = raw.chat(model, prompt, stream=False), None
    again = raw.retrieve(asked.run)
    assert (again.status, again.body) == (asked.status, asked.body) == (429, asked.body)
    streamed = raw.resume(asked.run)
    assert (streamed.status, streamed.error) == (429, asked.error)


@promise("resume.in-progress")
def test_the_completion_of_a_living_run_is_a_conflict(raw: Raw, wire_model: str) -> None:
    """openai.md §3: 409 `run_in_progress` with `Retry-After`."""
    with raw.open("POST", CHAT, ask(wire_model, script('say "a"', "hang"), stream=True)) as response:
        take_frames(response, 2)
        answer = raw.retrieve(headers_of(response)["x-workflow-id"])
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (409, "run_in_progress", "1")


@promise("resume.stream-by-accept")
def test_an_accept_header_asks_for_the_stream(raw: Raw, resumed_model: str) -> None:
    """openai.md §3."""
    uncut = raw.chat(resumed_model, script('say "hi"'))
    again = raw.send("GET", f"{CHAT}/{uncut.run}", headers={"Accept": "text/event-stream"})
    assert again.stream == uncut.stream


@promise("resume.refused")
@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("starting_after=7", {}, 400, "invalid_position"),
        ("starting_after=999999", {}, 400, "invalid_position"),
        ("starting_after=-1", {}, 400, "invalid_position"),
        ("starting_after=1.0", {}, 400, "invalid_position"),
        ("starting_after=%D9%A3", {}, 400, "invalid_position"),
        ("starting_after=1&starting_after=2", {}, 400, "invalid_position"),
        ("starting_after=99999999999999999999", {}, 400, "invalid_position"),
        ("", {"Last-Event-ID": "nonsense"}, 400, "invalid_position"),
        ("", {"Last-Event-ID": "-5"}, 400, "invalid_position"),
        ("", {"Last-Event-ID": "99999999999999999999999"}, 400, "invalid_position"),
        ("", {"Last-Event-ID": "1-1"}, 410, "position_gone"),
        ("", {"Last-Event-ID": "999"}, 410, "position_gone"),
        ("", {"Last-Event-ID": "99999999999999-3"}, 410, "position_gone"),
    ],
)
def test_a_place_that_does_not_exist_is_refused(
    raw: Raw, raw_brisk: Raw, resumed_model: str, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    """design.md §1.4: a resume is right or refused. The stream of this run has six events."""
    uncut = raw.chat(resumed_model, script('tokens "a" "b" "c"'))
    assert len(uncut.frames) == 6
    for server in (raw, raw_brisk):
        answer = server.send("GET", f"{CHAT}/{uncut.run}?stream=true&{query}", headers=headers)
        assert (answer.status, answer.error["code"]) == (status, code)


@promise("resume.refused")
def test_another_runs_place_is_refused(raw: Raw, resumed_model: str) -> None:
    """design.md §1.4: never the continuation of something else."""
    one, other = (raw.chat(resumed_model, script('tokens "a" "b"'), headers=IDS) for _ in range(2))
    event_id = one.events[-2].id
    answer = raw.resume(other.run, event_id=event_id)
    assert (answer.status, answer.error["code"]) == (410, "position_gone")


@promise("resume.count")
def test_after_everything_only_the_end_is_left(raw: Raw, resumed_model: str) -> None:
    """openai.md §3: all chunks are there, `[DONE]` is not one of them."""
    uncut = raw.chat(resumed_model, script('say "hi"'))
    assert raw.resume(uncut.run, len(uncut.chunks)).stream == b"data: [DONE]\n\n"
    assert complaints(uncut.body, Asked()) == []
