"""Answers that are given again: to the official SDK, and at every native door, from the log that Redis keeps."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from compat_tests.doors import DOORS, Event, Server
from compat_tests.manifest import promise
from compat_tests.raw import TIMEOUT_S, script
from compat_tests.rules import complaints
from compat_tests.watch import seen, shown
from protos import orchestrator_pb2 as pb


def said(events: list[Event]) -> list[Event]:
    """What was said in between, without where and when."""
    volatile = ("workflow_id", "stream_id", "seq", "timestamp")
    return [{name: fact for name, fact in event.items() if name not in volatile} for event in events[1:-2]]


@promise("cache.hit", "sdk.raw-response")
@pytest.mark.parametrize("model_name", ["cached", "cached-none"])
def test_the_sdk_is_told_and_every_door_shows_the_same(
    client: OpenAI, here: Server, there: Server, mark: str, model_name: str
) -> None:
    """openai.md §3, P5: durable or not, whole or streamed, at all doors of two replicas."""
    asked: dict[str, Any] = {
        "model": model_name,
        "messages": [{"role": "user", "content": script('say "Hello cached world"', mark)}],
        "temperature": 0,
    }
    first, again = [client.chat.completions.with_raw_response.create(**asked) for _ in range(2)]
    assert [raw.headers["x-cache"] for raw in (first, again)] == ["miss", "hit"]
    assert first.parse().choices == again.parse().choices
    assert first.parse().usage == again.parse().usage
    assert first.parse().id != again.parse().id
    with client.chat.completions.with_streaming_response.create(**asked, stream=True) as streamed:
        assert streamed.headers["x-cache"] == "hit"
        assert not complaints(streamed.read())
    run = again.headers["x-workflow-id"]
    log = here.log(run)
    assert said(log) == said(here.log(first.headers["x-workflow-id"]))
    assert log[0]["payload"]["cached_from"] == first.headers["x-workflow-id"]
    for server in (here, there):
        for door in DOORS.values():
            assert seen(door, server, run) == shown(door, log)
    request = pb.GetTaskStatusRequest(task_id=run, include_details=True)
    status = there.tasks.GetTaskStatus(request, metadata=there.metadata, timeout=TIMEOUT_S)
    assert (status.metrics.cache_hit, status.metrics.cache_score) == (True, 1.0)


@promise("cache.semantic")
def test_a_question_that_means_the_same(client: OpenAI, here: Server, there: Server, mark: str) -> None:
    """openai.md §3: what is alike is remembered once it was answered, which nobody waits for; so a few have to ask."""

    def ask(like: str) -> Any:
        question = script('say "Paris"', f"# what is the capital city of the {like} french republic these days")
        messages = [{"role": "system", "content": mark}, {"role": "user", "content": question}]
        body: Any = {"model": "semantic", "messages": messages, "temperature": 0}
        return client.chat.completions.with_raw_response.create(**body)

    answers = [ask("old")]
    while answers[-1].headers["x-cache"] != "semantic":
        assert len(answers) < 100
        assert answers[-1].headers["x-cache"] == "miss"
        answers.append(ask(f"very {'very ' * len(answers)}"))
    assert {answer.parse().choices[0].message.content for answer in answers} == {"Paris"}
    run = answers[-1].headers["x-workflow-id"]
    log = here.log(run)
    score = log[0]["payload"]["cache_score"]
    assert 0.9 <= score <= 1.0
    assert log[0]["payload"]["cached_from"] in {answer.headers["x-workflow-id"] for answer in answers[:-1]}
    request = pb.GetTaskStatusRequest(task_id=run, include_details=True)
    status = there.tasks.GetTaskStatus(request, metadata=there.metadata, timeout=TIMEOUT_S)
    assert (status.metrics.cache_hit, status.metrics.cache_score) == (True, score)


@promise("cache.tenant")
def test_a_stranger_asks_anew(there: Server, mallory: Server, mark: str) -> None:
    """design §1.8: nothing of another tenant's."""
    body = {"model": "cached", "messages": [{"role": "user", "content": script('say "mine"', mark)}], "temperature": 0}
    found = [server.raw.send("POST", "/v1/chat/completions", body).headers["x-cache"] for server in (there, there, mallory)]
    assert found == ["miss", "hit", "miss"]
