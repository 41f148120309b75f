"""What a log line looks like, to programs and to people."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gateway.observe import logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging belongs to the process, and other tests are in it too."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    yield
    root.handlers[:], root.level = handlers, level
    logging.getLogger("temporalio").setLevel(logging.NOTSET)
    structlog.reset_defaults()


def request(stream: io.StringIO, **facts: object) -> str:
    logs.logger("here").info("request", method="GET", route="/v1/models", status=200, duration_ms=1.5, **facts)
    return stream.getvalue()


def test_programs_get_json_that_begins_with_what_everybody_looks_for() -> None:
    logs.configure(format="auto", stream=(stream := io.StringIO()))
    line = json.loads(request(stream, workflow_id="task-1", request_id="req-1"))
    assert list(line) == [
        "time",
        "level",
        "event",
        "source",
        "method",
        "route",
        "status",
        "duration_ms",
        "workflow_id",
        "request_id",
    ]
    logging.getLogger("elsewhere").warning("it is %s", "late")
    line = json.loads(stream.getvalue().splitlines()[1])
    assert line | {"time": ""} == {"time": "", "level": "warning", "event": "it is late", "source": "elsewhere"}


def test_people_get_one_short_line_for_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure(format="auto", stream=(stream := Terminal()))
    time, line = request(stream, workflow_id="task-1", request_id="req-1").split(" ", 1)
    assert len(time) == len("12:00:00")
    assert line == "GET /v1/models 200  duration_ms=1.5 workflow_id=task-1\n"


def test_only_a_terminal_gets_colour() -> None:
    logs.configure(format="text", stream=(stream := io.StringIO()))
    assert "\x1b" not in request(stream)
    logs.configure(format="text", stream=(stream := Terminal()))
    assert "\x1b" in request(stream)


def test_what_a_client_sent_does_not_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    logs.configure(format="auto", stream=(stream := Terminal()))
    assert "\x1b" not in request(stream, name="\x1b]0;owned\x07")
    logging.getLogger("elsewhere").warning("odd: %s", "\x1b[2J\n12:00:00 fake")
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_traceback_is_below_its_line() -> None:
    logs.configure(format="text", stream=(stream := io.StringIO()))
    try:
        raise ValueError("oh")
    except ValueError:
        logging.getLogger("elsewhere").exception("it failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error it failed  source=elsewhere")
    assert (rest[0], rest[-1]) == ("Traceback (most recent call last):", "ValueError: oh")
