"""What the payloads of the events that make an answer must look like. Publishers are not trusted to have read the docs.

Unknown keys are ignored; a known key of the wrong type makes the payload unreadable (`msgspec.ValidationError`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from orchestrator.upstreams.upstream import Usage

ChoiceIndex = Annotated[int, msgspec.Meta(ge=0, lt=128)]
"""OpenAI's `n` is at most 128. The bound keeps a publisher's typing error from opening a billion choices."""

Offset = Annotated[int, msgspec.Meta(ge=0)]
Calls = list[dict[str, Any]]


class Partial(msgspec.Struct):
    """LLM_PARTIAL: what a delta says beside its `message`."""

    choice: ChoiceIndex = 0
    reasoning: str | None = None
    refusal: str | None = None
    function_call: dict[str, Any] | None = None
    tool_calls: Calls | None = None
    logprobs: dict[str, Any] | None = None


class Whole(msgspec.Struct):
    """One choice of a finished call, all of it."""

    index: ChoiceIndex = 0
    message: str | None = None
    finish_reason: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    function_call: dict[str, Any] | None = None
    tool_calls: Calls | None = None
    logprobs: dict[str, Any] | None = None
    offset: Offset | None = None
    """Where in the answer its text begins. None: after all that was said before the call."""


class Choices(msgspec.Struct):
    """LLM_OUTPUT lists its choices when there are several."""

    choices: list[Whole] | None = None


class Reset(msgspec.Struct):
    """OUTPUT_RESET: the text of `choice` after `offset` characters is unsaid; at 0 everything else it said is too.

    `again`: so many characters, with all that was said beside them, are unsaid only to be said again as they were.
    """

    offset: Offset
    choice: ChoiceIndex = 0
    again: Offset = 0


class Spent(msgspec.Struct):
    """What LLM_OUTPUT and WORKFLOW_COMPLETED say about tokens."""

    usage: Usage | None = None


class Result(msgspec.Struct):
    """WORKFLOW_COMPLETED, as far as an answer depends on it."""

    result: Any = None
    finish_reason: str | None = None


def wholes(message: str | None, payload: Mapping[str, Any]) -> list[Whole]:
    """All choices of an LLM_OUTPUT; its `message` is the text of choice 0."""
    whole = msgspec.convert(payload, Whole)
    if listed := msgspec.convert(payload, Choices).choices:
        for choice in listed:
            choice.offset = whole.offset
        return listed
    whole.index, whole.message = 0, message
    return [whole]


def usage(payload: Mapping[str, Any] | None) -> Usage | None:
    """The tokens that a payload speaks of. Counting is a courtesy: what cannot be read is not counted."""
    try:
        spent = msgspec.convert(payload or {}, Spent).usage
    except msgspec.ValidationError:
        return None
    if spent is not None and not spent.total_tokens:
        spent = msgspec.structs.replace(spent, total_tokens=spent.prompt_tokens + spent.completion_tokens)
    return spent
