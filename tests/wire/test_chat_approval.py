"""Approvals in the words of chat completions: what is asked, and what counts as an answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.wire.chat_approval import MAX_WORDS, call_of, decided
from orchestrator.engine import Decision
from orchestrator.errors import InvalidRequest
from tests.wire.logs import RUN_ID

CALL = f"call_{RUN_ID[5:]}_ok"


def result(content: Any, call: str = CALL) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call, "content": content}


def decision(content: Any) -> Decision:
    said = decided([{"role": "user", "content": "x"}, result(content)])
    assert said is not None
    assert (said.run_id, said.decision.approval_id) == (RUN_ID, "ok")
    return said.decision


def test_what_is_asked() -> None:
    payload = {"approval_id": "ok", "step": "ok", "proposed_action": "pay", "reason": None, "expires_at": "2030", "metadata": {}}
    arguments = '{"approval_id":"ok","proposed_action":"pay","expires_at":"2030"}'
    assert call_of(RUN_ID, payload) == {
        "id": CALL,
        "type": "function",
        "function": {"name": "request_approval", "arguments": arguments},
    }


@pytest.mark.parametrize("approval_id", ["ok", "ok~2", "child.ok", "a/b", "über", "a b", "100%", "a_b", "a\nb"])
def test_an_id_names_the_run_and_the_approval(approval_id: str) -> None:
    call = call_of(RUN_ID, {"approval_id": approval_id})
    assert call["id"].isascii()
    said = decided([result("yes", call["id"])])
    assert said is not None
    assert (said.run_id, said.decision.approval_id) == (RUN_ID, approval_id)


@pytest.mark.parametrize(
    ("content", "approved", "feedback"),
    [
        ('{"approved": true}', True, None),
        ('{"approved": false, "feedback": "not today"}', False, "not today"),
        ('{"approved": true, "feedback": 7, "more": {}}', True, None),
        ("true", True, None),
        ("false", False, None),
        ("yes", True, None),
        (" Yes. ", True, None),
        ('"Approved!"', True, None),
        ("OK", True, None),
        ("1", True, None),
        ("0", False, None),
        ("no", False, None),
        ("Denied.", False, None),
        ("reject", False, None),
        ([{"type": "text", "text": '{"approved":'}, {"type": "text", "text": " true}"}], True, None),
    ],
)
def test_what_is_an_answer(content: Any, approved: bool, feedback: str | None) -> None:
    said = decision(content)
    assert (said.approved, said.feedback, said.decided_by) == (approved, feedback, None)


def test_another_action_may_be_asked_for() -> None:
    assert decision('{"approved": true, "modified_action": "pay half"}').modified_action == "pay half"


NONE = ["", "perhaps", "yes and no", "2", "1.0", "null", "[]", "{}", None, []]
NONE += ['{"approved": "yes"}', '{"approved": 1}', "{'approved': True}", '{"feedback": "x"}']
NONE += [json.dumps({"approved": True, name: "x" * (MAX_WORDS + 1)}) for name in ("feedback", "modified_action")]


@pytest.mark.parametrize("content", NONE)
def test_what_is_none_is_refused_with_its_place(content: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decision(content)
    assert (caught.value.status, caught.value.param) == (400, "messages[1].content")


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user", "content": "yes"}],
        [result("yes"), {"role": "user", "content": "and now?"}],
        [result("yes", "call_weather")],
        [result("yes", f"call_{RUN_ID[5:]}_")],
        [result("yes", f"call_{RUN_ID[5:-1]}_ok")],
        [result("yes", f"call_{RUN_ID[5:].upper()}_ok")],
        [result("yes", f"xcall_{RUN_ID[5:]}_ok")],
        [{"role": "tool", "content": "yes"}],
        [result("yes", 7)],  # type: ignore[arg-type]
    ],
)
def test_what_decides_nothing(messages: list[dict[str, Any]]) -> None:
    assert decided(messages) is None


def test_the_last_results_of_a_conversation_count() -> None:
    """Results of several calls come in any order, and earlier turns were decided in their time."""
    earlier, later = result("no", f"call_{RUN_ID[5:]}_one"), result("yes", f"call_{RUN_ID[5:]}_two")
    said = decided([earlier, {"role": "assistant", "content": None}, later, result("12 °C", "call_weather")])
    assert said is not None
    assert (said.decision.approval_id, said.decision.approved) == ("two", True)
