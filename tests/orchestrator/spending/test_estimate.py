"""What is reserved for a run before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.catalog import ModelEntry, Resolved
from orchestrator.limits.limits import Estimate
from orchestrator.spending.asking import limited, most_asked
from orchestrator.spending.estimate import estimate
from orchestrator.spending.meter import STEP
from orchestrator.spending.money import Price
from orchestrator.upstreams.upstream import Call
from tests.orchestrator.engines import TOKENIZER

HELLO = {"messages": [{"role": "user", "content": "Hello there, general"}]}
PRICED = ModelEntry.model_validate({"plan": {"agent": {"upstream": "demo"}}, "price": {"input": 2.5, "output": "10"}})


@pytest.mark.parametrize(
    ("asked", "output"),
    [
        ({}, STEP),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7, "max_tokens": 9, "n": 3}, 21),
        ({"max_tokens": 10**6}, STEP),
    ],
)
async def test_the_prompt_and_the_beginning_of_the_answer(asked: dict[str, Any], output: int) -> None:
    resolved = Resolved("demo", "gpt-4o", PRICED)
    # 3 tokens around the message, 3 before the answer, 1 for the role: what OpenAI counts for such a request.
    expected = Estimate(3 + 3 + 1 + 4, output, Price(2500, 10_000))
    assert await estimate(TOKENIZER, {**HELLO, **asked}, resolved) == expected


async def test_a_short_prompt_counts_the_same_here_as_in_a_thread() -> None:
    await TOKENIZER.count_messages("gpt-4o", HELLO)
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello there, general"}]}], "tools": []}
    padded = {"messages": [*HELLO["messages"], {"role": "user", "content": " word" * 1000}]}
    short = await TOKENIZER.count_messages("gpt-4o", HELLO)
    assert await TOKENIZER.count_messages("gpt-4o", parts) == short
    assert await TOKENIZER.count_messages("gpt-4o", padded) == short + 1000 + 3 + 1


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, {"max_completion_tokens": 50}),
        ({"max_tokens": 80}, {"max_tokens": 50}),
        ({"max_completion_tokens": 80, "max_tokens": 90}, {"max_completion_tokens": 50, "max_tokens": 50}),
        ({"n": 4}, {"n": 4, "max_completion_tokens": 12}),
        ({"n": 100}, {"n": 100, "max_completion_tokens": 1}),
    ],
)
def test_an_upstream_is_told_in_the_words_of_the_request(asked: dict[str, Any], told: dict[str, Any]) -> None:
    call = limited(Call("task", "model", {**HELLO, **asked}), 50)
    assert call.body == {**HELLO, **told}


def test_nothing_asked_is_no_limit() -> None:
    assert most_asked({"max_tokens": None, "n": 2}) is None
