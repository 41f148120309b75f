"""The script language: every word, and where a mistake is said to be."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.script import (
    Blank,
    Broken,
    CallTool,
    Cut,
    Finish,
    First,
    Garbage,
    Line,
    Manner,
    Rate,
    Repeat,
    Say,
    Script,
    Seed,
    Statement,
    Status,
    Tokens,
    Wait,
    is_script,
    parse,
)


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("say 20 words", (Say(words=20),)),
        ("say 1 word", (Say(words=1),)),
        ("say results; reason results", (Say(results=True), Say(results=True, to="reasoning"))),
        (r'say "two\nlines \"quoted\" \u00e9; # all text"', (Say('two\nlines "quoted" é; # all text'),)),
        ('reason "why"; reason 3 words', (Say("why", to="reasoning"), Say(words=3, to="reasoning"))),
        ('refuse "no"', (Say("no", to="refusal"),)),
        ('tokens "a" " b" ""', (Tokens(("a", " b", "")),)),
        ("wait 200ms; wait 1.5s", (Wait(0.2), Wait(1.5))),
        ("hang", (Wait(math.inf),)),
        ("rate 50/s; rate 50; rate max", (Rate(50.0), Rate(50.0), Rate(math.inf))),
        ("seed 7", (Seed(7),)),
        ('call get_weather {"city": "Paris;", "n": [1]}', (CallTool("get_weather", '{"city": "Paris;", "n": [1]}'),)),
        ('call f "never {parses"; call g', (CallTool("f", "never {parses"), CallTool("g", "{}"))),
        ("finish length", (Finish("length"),)),
        ("status 503", (Status(503),)),
        ('status 429 retry-after 2 code slow_down "Not so fast"', (Status(429, 2.0, "slow_down", "Not so fast"),)),
        ('error "broken heart"', (Status(500, message="broken heart"),)),
        ("cut; cut mid", (Cut(), Cut(mid=True))),
        ("broken; garbage", (Broken(), Garbage())),
        ("line 10MB; line 64KB; line 5; blank forever", (Line(10e6), Line(64e3), Line(5), Blank(math.inf))),
        ("once cut; twice status 500", (First(1, Cut()), First(2, Status(500)))),
        ('repeat 3; say "x"; end; cut', (Repeat(3, (Say("x"),)), Cut())),
        ("repeat forever\n repeat 2\n wait 1s\n end\nend", (Repeat(None, (Repeat(2, (Wait(1.0),)),)),)),
        ("", ()),
        ("  # nothing but a comment", ()),
        ("say 1 word # one\n\n;; \r\n wait 1s ;", (Say(words=1), Wait(1.0))),
    ],
)
def test_statements(text: str, statements: tuple[Statement, ...]) -> None:
    assert parse(text) == Script((statements,))


def test_manners_hold_for_the_whole_script() -> None:
    script = parse("choices 2; usage 10 20; no usage; no done; packets 1; newlines crlf; whole; say 1 word")
    manner = Manner(2, (10, 20), frozenset({"usage", "done"}), 1, b"\r\n", True)
    assert script == Script(((Say(words=1),),), manner)


def test_turns_are_separated_by_then() -> None:
    assert parse('call f\nthen\nsay "done"').turns == ((CallTool("f", "{}"),), (Say("done"),))


@pytest.mark.parametrize(
    ("prompt", "yes"),
    [
        ("/script say 1 word", True),
        ("  \n#!script\nsay 1 word", True),
        ("/script", True),
        ("/scripted", False),
        ("please /script", False),
        ("", False),
    ],
)
def test_only_a_marker_makes_a_prompt_a_script(prompt: str, yes: bool) -> None:
    assert is_script(prompt) is yes


def test_a_marker_is_no_statement() -> None:
    assert parse("/script say 1 word") == parse("#!script\nsay 1 word") == parse("say 1 word")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/script\nsay twenty words", "script, line 2, column 5: expected a text in quotes, a number of words, or results"),
        ("say 5", "script, line 1, column 6: expected words or word; found ''"),
        ("wait 5", "script, line 1, column 6: expected a time such as 200ms or 2s; found '5'"),
        ("cut; jump", "script, line 1, column 6: unknown statement, expected one of blank, broken,"),
        ("cut fast", "script, line 1, column 5: expected mid; found 'fast'"),
        ("hang now", "script, line 1, column 6: expected the end of the statement"),
        ('say "open', "script, line 1, column 5: expected a text in quotes or an object"),
        ("call f {city}", "script, line 1, column 8: expected a text in quotes or an object"),
        ("status 200", "script, line 1, column 8: expected an error status, a number from 400 to 599; found '200'"),
        ("repeat 3; cut", "script, line 1, column 14: expected 'end' of the repeat"),
        ("once no usage", "script, line 1, column 9: expected a statement that can be done once"),
        ("no luck", "script, line 1, column 4: expected usage or finish or done or role or limit; found 'luck'"),
        (
            "say 9999999 words",
            "script, line 1, column 5: expected a text in quotes, a number of words, or results, a number from 0",
        ),
        ("once " * 50 + "cut", "script, line 1, column 86: nested more than 16 deep"),
        ("x" * 70_000, "script: longer than 65536 characters"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(text)
    assert raised.value.message[: len(message)] == message
    assert (raised.value.code, raised.value.param, raised.value.status) == ("invalid_script", "messages", 400)


_WORDS = st.sampled_from(
    [
        *("say", "3", "words", "wait", "1ms", "call", "f", "repeat", "forever", "end", "then", "once", "cut", "no", "usage"),
        *("rate", "429", "status", "²", '"', '"x"', "{", "}", '{"a":1}', "[", ";", "\n", "#"),
    ]
)


@given(st.lists(_WORDS | st.text(max_size=5), max_size=30).map(" ".join))
def test_any_text_is_a_script_or_a_mistake(text: str) -> None:
    """A client controls this text; nothing it writes may become a 500."""
    with contextlib.suppress(InvalidRequest):
        parse(text)
