"""What a person sees of a task while it runs."""

from __future__ import annotations

import io
from typing import Any

import pytest

from headgate.events import Event
from headgate.live import LivePrinter, words
from headgate.terminal import note, print_facts, print_table, styled, tame

RUN = "task-0123456789abcdef0123456789abcdef"
STARTED = ("WORKFLOW_STARTED", None, None, {"answers": ["writer"]})
COMPLETED = ("WORKFLOW_COMPLETED", None, None, {"result": "", "finish_reason": "stop", "usage": {"prompt_tokens": 1}})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def events(*said: tuple[Any, ...]) -> list[Event]:
    made = []
    for seq, (type, agent, message, payload) in enumerate(((*each, None, None, None)[:4] for each in said), 1):
        made.append(Event(RUN, type, seq, f"1-{seq}", "t", agent, message, payload))
    return made


def shown(*said: tuple[Any, ...], out: io.StringIO | None = None, after: int = 0) -> tuple[str, list[str], LivePrinter]:
    """Standard output, the notes, and the printer."""
    out = out or io.StringIO()
    notes: list[str] = []
    printer = LivePrinter(out, notes.append, after)
    for event in events(*said):
        printer.show(event)
    printer.end()
    return out.getvalue(), notes, printer


def partial(text: str | None, agent: str = "writer", **payload: Any) -> tuple[Any, ...]:
    return ("LLM_PARTIAL", agent, text, payload or None)


def test_only_the_answering_agent_is_on_standard_output() -> None:
    out, notes, printer = shown(STARTED, partial("thinking", "critic"), partial("The "), partial("answer."), COMPLETED)
    assert (out, notes) == ("The answer.\n", [])
    assert printer.summary() == "finish reason: stop, 1 + 0 tokens"


def test_a_worker_that_only_gives_a_whole_text_has_answered_too() -> None:
    assert shown(STARTED, ("LLM_OUTPUT", "writer", "All of it.", None), COMPLETED)[0] == "All of it.\n"
    assert shown(STARTED, ("WORKFLOW_COMPLETED", None, None, {"result": "Only a result."}))[0] == "Only a result.\n"


def test_reasoning_is_for_people() -> None:
    said = STARTED, partial(None, reasoning="Hmm."), partial("Yes."), COMPLETED
    assert shown(*said)[0] == "Yes.\n"
    assert shown(*said, out=Terminal())[0] == "\x1b[2mHmm.\x1b[0m\nYes.\n"


def test_other_choices_are_left_out() -> None:
    assert shown(STARTED, partial("one"), partial("two", choice=1), COMPLETED)[0] == "one\n"


def test_tool_calls_come_when_they_are_complete() -> None:
    first = partial(None, tool_calls=[{"index": 0, "id": "c", "function": {"name": "get", "arguments": '{"a"'}}])
    rest = partial(None, tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}])
    assert shown(STARTED, partial("Look:"), first, rest)[0] == 'Look:\nget({"a": 1})\n'


def test_what_no_longer_holds_is_said_and_the_answer_given_as_it_is_now() -> None:
    reset = ("OUTPUT_RESET", "writer", None, {"offset": 4})
    out, notes, _ = shown(STARTED, partial("It is red"), reset, partial("was blue"), COMPLETED)
    assert out == "It is red\nIt iwas blue\n"
    assert notes == ["the answer was generated again and differs; this is how it goes now:"]


def test_what_comes_before_a_position_counts_and_is_not_shown() -> None:
    tool = ("TOOL_INVOKED", "writer", None, {"tool": "get"})
    whole = ("LLM_OUTPUT", "writer", "The answer.", {"finish_reason": "length"})
    out, notes, printer = shown(STARTED, tool, partial("The "), partial("answer."), whole, COMPLETED, after=3)
    assert (out, notes) == ("answer.\n", [])
    assert printer.summary().startswith("finish reason: length")


def test_a_note_begins_a_line_where_both_are_on_one_screen() -> None:
    tool = ("TOOL_INVOKED", "writer", None, {"tool": "get"})
    assert shown(STARTED, partial("The "), tool, partial("end"), COMPLETED)[0] == "The end\n"
    assert shown(STARTED, partial("The "), tool, partial("end"), COMPLETED, out=Terminal())[0] == "The \nend\n"


def test_a_model_cannot_command_the_terminal() -> None:
    hostile = "\x1b]0;owned\x07 \x9b2J\ttab\r\nend\x7f"
    assert shown(STARTED, partial(hostile), out=Terminal())[0] == "]0;owned 2J\ttab\nend\n"
    assert shown(STARTED, partial(hostile))[0] == hostile + "\n"
    assert tame("\x1b[1m", Terminal()) == "[1m"


def test_an_ending_that_is_none_has_no_summary() -> None:
    failed = ("WORKFLOW_FAILED", None, None, {"error": {"code": "x", "message": "y"}})
    _, notes, printer = shown(STARTED, partial("a"), failed)
    assert (notes, printer.summary()) == ([], "")
    assert printer.ending is not None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("AGENT_STARTED", "writer"), None),
        (("AGENT_STARTED", "critic"), "critic started"),
        (("AGENT_COMPLETED", "critic"), "critic completed"),
        (("AGENT_THINKING", "critic", "about it"), "critic thinking: about it"),
        (("AGENT_RETRYING", "writer", None, {"error": "upstream_cut"}), "writer tries again: upstream_cut"),
        (("TOOL_INVOKED", "writer", None, {"tool": "get_weather"}), "writer calls get_weather"),
        (
            ("TOOL_INVOKED", "writer", None, {"tool": "f", "params": {"city": "Paris", "n": 1}}),
            "writer calls f(city='Paris', n=1)",
        ),
        (("TOOL_INVOKED", "writer", None, {"tool": "f", "params": {"a": "x" * 99}}), f"writer calls f(a='{'x' * 77} …)"),
        (("TOOL_OBSERVATION", "writer", None, {"tool": "get_weather", "success": False}), "get_weather failed"),
        (("TOOL_ERROR", "writer", "It hangs.", {"tool": "get_weather", "code": "tool_timeout"}), "get_weather failed: It hangs."),
        (("TOOL_OBSERVATION", "writer", None, {"tool": "get_weather", "success": True}), "get_weather answered"),
        (("PROGRESS", None, "halfway", {"progress": 0.5}), "50% halfway"),
        (("PROGRESS", None, None, {"progress": 0.25, "step_name": "draft", "status": "completed"}), "25% draft completed"),
        (("PROGRESS",), "progress"),
        (
            (
                "PROGRESS",
                None,
                None,
                {"progress": 0.25, "step_name": "a", "status": "started", "parallel_index": 0, "parallel_total": 2},
            ),
            "25% a started (branch 1 of 2)",
        ),
        (
            ("PROGRESS", None, None, {"progress": 0, "step_name": "which", "status": "started", "branch": "then"}),
            "0% which started (then)",
        ),
        (
            ("PROGRESS", None, None, {"progress": 0, "step_name": "a", "status": "failed", "attempt": 2, "error": "It broke."}),
            "0% a failed (attempt 2): It broke.",
        ),
        (("WORKFLOW_PAUSED", None, None, {"reason": "lunch"}), "paused: lunch"),
        (("WORKFLOW_RESUMED",), "resumed"),
        (("WARNING", None, "careful"), "warning: careful"),
        (("X_MY_OWN", None, "news"), "my own: news"),
        (
            ("APPROVAL_REQUESTED", None, None, {"approval_id": "a-1", "proposed_action": "send it"}),
            f"approval wanted for send it: headgate approve {RUN} a-1 [--deny]",
        ),
        (("APPROVAL_DECISION", None, None, {"approval_id": "a-1", "approved": True}), "a-1 was approved"),
        (("LLM_PROMPT",), None),
        (("STREAM_END",), None),
    ],
)
def test_in_few_words(said: tuple[Any, ...], told: str | None) -> None:
    assert words(events(said)[0], "writer") == told


def test_what_progress_tells_is_not_told_twice() -> None:
    """The command once showed every step of a plan in two words, and then in two more."""
    began = ("PROGRESS", None, None, {"step_name": "critic", "status": "started", "progress": 0.0})
    ended = ("PROGRESS", None, None, {"step_name": "critic", "status": "completed", "progress": 0.5})
    notes = shown(STARTED, began, ("AGENT_STARTED", "critic"), ("AGENT_COMPLETED", "critic"), ended, ("AGENT_STARTED", "guest"))[
        1
    ]
    assert notes == ["0% critic started", "50% critic completed", "guest started"]


def test_colour_is_for_terminals_whose_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("text", "2", Terminal()) == "\x1b[2mtext\x1b[0m"
    assert styled("text", "2", io.StringIO()) == "text"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("text", "2", Terminal()) == "text"


def test_tables_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("TASK", "QUERY"), [("task-1", "a\nb"), ("task-22", "")])
    print_facts([("task", "task-1"), ("error", None)])
    note("said")
    assert capsys.readouterr() == ("TASK     QUERY\ntask-1   a b\ntask-22\ntask:       task-1\n", "said\n")
