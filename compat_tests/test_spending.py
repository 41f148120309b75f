"""Budgets and usage, from outside: an upstream that heeds no limit, clients that leave, and what the ledger says then."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai import OpenAI

from compat_tests.doors import Server
from compat_tests.manifest import promise
from compat_tests.model_server import ModelServer
from compat_tests.raw import CHAT, Raw, ask, script, take_frames
from compat_tests.rules import complaints

BOUND_S = 2.0
ARCHIVED_S = 20.0


@promise("spend.budget", "spend.headers")
@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_goes_on_is_cut_off_and_the_run_ends_truly(
    client: OpenAI, here: Server, mark: str, wire_model: str, model_server: ModelServer, stream: bool
) -> None:
    """openai.md §3, P14, P17: 150 tokens, of an answer without end."""
    prompt = script("no limit", "rate 400/s", "say 5000 words", mark)
    asked: dict[str, Any] = {
        "model": wire_model,
        "messages": [{"role": "user", "content": prompt}],
        "extra_body": {"headgate_options": {"budget_tokens": 150}},
    }
    if stream:
        with client.chat.completions.with_streaming_response.create(**asked, stream=True) as raw:
            headers, body = raw.headers, raw.read()
        assert not complaints(body)
    else:
        answer = client.chat.completions.with_raw_response.create(**asked)
        headers, completion = answer.headers, answer.parse()
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage is not None
        assert completion.usage.total_tokens <= 150
    assert (headers["x-headgate-upstream"], headers["x-headgate-attempt"]) == ("wire", "1")
    assert model_server.ending(prompt, BOUND_S) == "cancelled"
    log = here.log(headers["x-workflow-id"])
    [ending] = [event["payload"] for event in log if event["type"] == "WORKFLOW_COMPLETED"]
    assert (ending["finish_reason"], ending["budget"]["code"]) == ("length", "run_budget_exceeded")
    assert 100 < ending["usage"]["total_tokens"] <= 150
    thresholds = [event["payload"]["threshold_percent"] for event in log if event["type"] == "BUDGET_THRESHOLD"]
    assert thresholds == [80, 100]


@promise("spend.ledger")
def test_what_a_client_that_left_has_used_is_counted_once(raw: Raw, mark: str, model_server: ModelServer) -> None:
    """openai.md §1.18: the ledger has what the task says, and a model of one's own to tell it from others."""
    model = f"wire/ledger-{mark.strip('# ')}"
    prompt = script('say "three little words"', "hang", mark)
    with raw.open("POST", CHAT, ask(model, prompt, stream=True)) as response:
        run = response.headers["x-workflow-id"]
        take_frames(response, 4)
    assert model_server.ending(prompt, BOUND_S) == "cancelled"
    until = time.monotonic() + ARCHIVED_S
    rows: list[Any] = []
    while not rows and time.monotonic() < until:
        report = raw.send("GET", "/api/v1/usage?group_by=model").json
        rows = [group for group in report["groups"] if group["model"] == model]
        time.sleep(0.1)
    task = raw.send("GET", f"/api/v1/tasks/{run}").json
    assert task["status"] == "CANCELLED"
    assert [(row["runs"], row["total_tokens"]) for row in rows] == [(1, task["usage"]["total_tokens"])]
    assert task["usage"]["completion_tokens"] == 3
