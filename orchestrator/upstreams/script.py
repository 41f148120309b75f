"""The language of scripts: what a scripted upstream is told to do. Text in, statements out; nothing is performed here.

    /script
    say 20 words; wait 200ms
    call get_weather {"city": "Paris"}

The words and what they mean: docs/reference/scripted.md. A mistake is an InvalidRequest that names its line and column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Literal, NoReturn, cast

import msgspec

from orchestrator.errors import InvalidRequest

MARKERS = ("/script", "#!script")
MAX_CHARS = 64 * 1024


class Say(msgspec.Struct, frozen=True):
    """Text: as written, so many made-up words, or what tools have answered; `to` is the field of the delta that takes it."""

    text: str | None = None
    words: int = 0
    results: bool = False
    to: Literal["content", "reasoning", "refusal"] = "content"


class Tokens(msgspec.Struct, frozen=True):
    """Exactly these pieces of text."""

    pieces: tuple[str, ...]


class Wait(msgspec.Struct, frozen=True):
    seconds: float


class Rate(msgspec.Struct, frozen=True):
    """Pieces per second from here on; infinite: as fast as they are taken."""

    per_s: float


class Seed(msgspec.Struct, frozen=True):
    """Other made-up words from here on."""

    seed: int


class CallTool(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class Finish(msgspec.Struct, frozen=True):
    reason: str


class Status(msgspec.Struct, frozen=True):
    """An error status, or after the first output an error inside the stream."""

    status: int
    retry_after_s: float | None = None
    code: str | None = None
    message: str | None = None


class Cut(msgspec.Struct, frozen=True):
    """The connection closes; `mid` a chunk, or between two."""

    mid: bool = False


class Broken(msgspec.Struct, frozen=True):
    """One line that is not JSON."""


class Garbage(msgspec.Struct, frozen=True):
    """A web page in place of an answer."""


class Line(msgspec.Struct, frozen=True):
    """One line of so many bytes."""

    size: float


class Blank(msgspec.Struct, frozen=True):
    """So many empty lines."""

    size: float


class Repeat(msgspec.Struct, frozen=True):
    """None: for ever."""

    times: int | None
    body: tuple[Statement, ...]


class First(msgspec.Struct, frozen=True):
    """Only in the first so many calls with the same prompt: what goes wrong once goes well when it is tried again."""

    calls: int
    statement: Statement


Statement = (
    Say | Tokens | Wait | Rate | Seed | CallTool | Finish | Status | Cut | Broken | Garbage | Line | Blank | Repeat | First
)


class Manner(msgspec.Struct, frozen=True):
    """How the whole answer is given, wherever in the script it is said."""

    choices: int | None = None
    usage: tuple[int, int] | None = None
    without: frozenset[str] = frozenset()
    packets: int | None = None
    newline: bytes = b"\n"
    whole: bool = False


class Script(msgspec.Struct, frozen=True):
    """What to do in each turn of a conversation, and how."""

    turns: tuple[tuple[Statement, ...], ...]
    manner: Manner = Manner()


def is_script(text: str) -> bool:
    """Whether a prompt is a script: its first word is a marker."""
    return _marker(text) is not None


def _marker(text: str) -> str | None:
    first = text.lstrip()[:16].split(maxsplit=1)[:1]
    return first[0] if first and first[0] in MARKERS else None


def parse(text: str) -> Script:
    """Raises InvalidRequest. The marker may be missing: in a configuration there is no doubt."""
    if len(text) > MAX_CHARS:
        raise InvalidRequest(f"script: longer than {MAX_CHARS} characters", param="messages", code="invalid_script")
    return _Parser(text).script()


_TOKEN = re.compile(r'[ \t]*(?:(?P<end>;|\r?\n|$)|(?P<comment>#[^\n]*)|(?P<value>["{\[])|(?P<word>[^\s;"{\[]+))')
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
_SIZE = re.compile(r"(\d+)(B|KB|MB|GB)?")
_SIZES = {None: 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_NEWLINES = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}
_WITHOUT = ("usage", "finish", "done", "role", "limit")
_JSON = json.JSONDecoder()
_FEW = 100_000
_MAX_DEPTH = 16


class _Parser:
    """Recursive descent over words. The place of a mistake is where the word that does not fit begins."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._start = 0
        self._depth = 0
        self._closed_by: str | None = None
        self._manner: dict[str, object] = {}

    def script(self) -> Script:
        if marker := _marker(self._text):
            self._at = self._text.index(marker) + len(marker)
        turns = [self._block(("then",))]
        while self._closed_by == "then":
            turns.append(self._block(("then",)))
        return Script(tuple(turns), Manner(**self._manner))  # type: ignore[arg-type]  # filled by _MANNERS alone

    def _block(self, closers: tuple[str, ...]) -> tuple[Statement, ...]:
        """Statements up to one of `closers` or the end of the script."""
        statements: list[Statement] = []
        while True:
            self._skip_ends()
            word = self._next()
            if word is None or word in closers:
                self._closed_by = word
                return tuple(statements)
            statement = self._statement(word)
            if statement is not None:
                statements.append(statement)
            if not self._at_end():
                self._next()
                self._fail("expected the end of the statement, ';' or a new line")

    def _statement(self, word: str) -> Statement | None:
        if word in _MANNERS:
            _MANNERS[word](self)
            return None
        if self._depth > _MAX_DEPTH:
            self._fail(f"nested more than {_MAX_DEPTH} deep")
        if word not in _STATEMENTS:
            self._fail(f"unknown statement, expected one of {', '.join(sorted({*_STATEMENTS, *_MANNERS, 'then'}))}")
        self._depth += 1
        statement = _STATEMENTS[word](self)
        self._depth -= 1
        return statement

    # Statements, each after its first word.

    def say(self, to: Literal["content", "reasoning", "refusal"] = "content") -> Say:
        if self._peek() == '"':
            return Say(self._string(), to=to)
        if self._text_ahead("results"):
            self._word("results")
            return Say(results=True, to=to)
        count = self._integer("a text in quotes, a number of words, or results")
        self._expect(("words", "word"))
        return Say(words=count, to=to)

    def tokens(self) -> Tokens:
        pieces = [self._string()]
        while self._peek() == '"':
            pieces.append(self._string())
        return Tokens(tuple(pieces))

    def wait(self) -> Wait:
        return Wait(self._duration())

    def rate(self) -> Rate:
        word = self._word("a rate such as 50/s, or max")
        number = word.removesuffix("/s")
        if word == "max":
            return Rate(math.inf)
        if not number.isascii() or not number.isdigit() or not 0 < int(number) <= _FEW:
            self._fail("expected a rate such as 50/s, or max")
        return Rate(float(number))

    def call(self) -> CallTool:
        name = self._word("a tool's name")
        match self._peek():
            case '"':
                return CallTool(name, self._string())
            case "{" | "[":
                return CallTool(name, self._json())
        return CallTool(name, "{}")

    def finish(self) -> Finish:
        return Finish(self._word("a finish reason"))

    def status(self) -> Status:
        status = self._integer("an error status", 400, 599)
        return self._error(status)

    def error(self) -> Status:
        return self._error(500)

    def _error(self, status: int) -> Status:
        retry_after_s: float | None = None
        code = message = None
        while not self._at_end():
            if self._peek() == '"':
                message = self._string()
            elif self._expect(("retry-after", "code")) == "code":
                code = self._word("a code")
            else:
                retry_after_s = float(self._integer("seconds", 0))
        return Status(status, retry_after_s, code, message)

    def cut(self) -> Cut:
        return Cut(mid=not self._at_end() and self._expect(("mid",)) == "mid")

    def repeat(self) -> Repeat:
        times = None if self._text_ahead("forever") else self._integer("a number of times, or forever")
        if times is None:
            self._word("forever")
        body = self._block(("end",))
        if self._closed_by != "end":
            self._fail("expected 'end' of the repeat")
        return Repeat(times, body)

    def first(self, calls: int) -> First:
        word = self._word("a statement")
        statement = self._statement(word)
        if statement is None:
            self._fail("expected a statement that can be done once")
        return First(calls, statement)

    def size(self, what: str) -> float:
        if self._text_ahead("forever"):
            self._word(what)
            return math.inf
        found = _SIZE.fullmatch(self._word(what))
        if found is None:
            self._fail(f"expected {what} such as 10MB, or forever")
        return int(found[1]) * _SIZES[found[2]]

    # Manners.

    def choices(self) -> None:
        self._manner["choices"] = self._integer("a number of choices", 1, 128)

    def usage(self) -> None:
        self._manner["usage"] = (self._integer("prompt tokens"), self._integer("completion tokens"))

    def without(self) -> None:
        before = cast(frozenset[str], self._manner.get("without", frozenset()))
        self._manner["without"] = before | {self._expect(_WITHOUT)}

    def packets(self) -> None:
        self._manner["packets"] = self._integer("bytes per packet", 1)

    def newlines(self) -> None:
        self._manner["newline"] = _NEWLINES[self._expect(tuple(_NEWLINES))]

    def whole(self) -> None:
        self._manner["whole"] = True

    # Words.

    def _skip_ends(self) -> None:
        while (found := _TOKEN.match(self._text, self._at)) and (found["end"] or found["comment"]):
            self._at = found.end()  # at the end of the text `end` is empty, which ends this too

    def _peek(self) -> str:
        """The first character of what follows in this statement; empty at its end."""
        found = _TOKEN.match(self._text, self._at)
        if found is None or found["end"] is not None or found["comment"]:
            return ""
        return self._text[found.start(found.lastgroup or 0)]

    def _at_end(self) -> bool:
        return not self._peek()

    def _text_ahead(self, word: str) -> bool:
        found = _TOKEN.match(self._text, self._at)
        return found is not None and found["word"] == word

    def _next(self) -> str | None:
        """The next word; None at the end of the script. A text or an object is returned by its first character."""
        found = _TOKEN.match(self._text, self._at)
        if found is None or found["end"] is not None or found["comment"]:
            self._start = self._at
            return None
        self._start = found.start(found.lastgroup or 0)
        self._at = found.end()
        return found[found.lastgroup or 0]

    def _word(self, what: str) -> str:
        if self._peek() in ("", '"', "{", "["):
            self._mark()
            self._fail(f"expected {what}")
        return self._next() or ""

    def _expect(self, words: tuple[str, ...]) -> str:
        word = self._word(" or ".join(words))
        if word not in words:
            self._fail(f"expected {' or '.join(words)}")
        return word

    def _integer(self, what: str, least: int = 0, most: int = _FEW) -> int:
        word = self._word(what)
        if not (word.isascii() and word.isdigit() and len(word) < 10 and least <= int(word) <= most):
            self._fail(f"expected {what}, a number from {least} to {most}")
        return int(word)

    def _duration(self) -> float:
        found = _DURATION.fullmatch(self._word("a time such as 200ms or 2s"))
        if found is None:
            self._fail("expected a time such as 200ms or 2s")
        return float(found[1]) / (1000 if found[2] == "ms" else 1)

    def _string(self) -> str:
        value = self._value()
        if not isinstance(value, str):
            self._fail("expected a text in quotes")
        return value

    def _json(self) -> str:
        start = self._mark()
        self._value()
        return self._text[start : self._at]

    def _value(self) -> object:
        start = self._mark()
        try:
            value, self._at = _JSON.raw_decode(self._text, start)
        except (ValueError, RecursionError):
            self._fail("expected a text in quotes or an object, as JSON writes them")
        return value

    def _mark(self) -> int:
        """Where the next word begins."""
        found = _TOKEN.match(self._text, self._at)
        self._start = found.start(found.lastgroup or 0) if found else self._at
        return self._start

    def _fail(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._start) + 1
        column = self._start - (self._text.rfind("\n", 0, self._start) + 1) + 1
        found = self._text[self._start : self._start + 24].split("\n")[0]
        raise InvalidRequest(
            f"script, line {line}, column {column}: {what}; found {found!r}", param="messages", code="invalid_script"
        )


_STATEMENTS: Mapping[str, Callable[[_Parser], Statement]] = {
    "say": _Parser.say,
    "reason": lambda parser: parser.say("reasoning"),
    "refuse": lambda parser: parser.say("refusal"),
    "tokens": _Parser.tokens,
    "wait": _Parser.wait,
    "rate": _Parser.rate,
    "seed": lambda parser: Seed(parser._integer("a number")),
    "call": _Parser.call,
    "finish": _Parser.finish,
    "status": _Parser.status,
    "error": _Parser.error,
    "cut": _Parser.cut,
    "hang": lambda _: Wait(math.inf),
    "broken": lambda _: Broken(),
    "garbage": lambda _: Garbage(),
    "line": lambda parser: Line(parser.size("a size")),
    "blank": lambda parser: Blank(parser.size("a size")),
    "repeat": _Parser.repeat,
    "once": lambda parser: parser.first(1),
    "twice": lambda parser: parser.first(2),
}

_MANNERS: Mapping[str, Callable[[_Parser], None]] = {
    "choices": _Parser.choices,
    "usage": _Parser.usage,
    "no": _Parser.without,
    "packets": _Parser.packets,
    "newlines": _Parser.newlines,
    "whole": _Parser.whole,
}
