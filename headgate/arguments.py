"""What can be typed after `headgate`."""

from __future__ import annotations

import os
import re
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, HelpFormatter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from headgate import __version__
from orchestrator.runs import Scope

DEFAULT_URL = "http://127.0.0.1:8080"

_STATES = ("QUEUED", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

_KEY_NAME = r"[A-Za-z0-9_.@ -]{1,64}"
_TENANT = r"[A-Za-z0-9_.-]{1,64}"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

_Command = Callable[..., ArgumentParser]


def parser() -> ArgumentParser:
    top = ArgumentParser(
        prog="headgate",
        formatter_class=_wide,
        description="An OpenAI-compatible streaming gateway for durable agent runs.",
        epilog="Exit codes: 0 complete, 1 failed, 2 usage or configuration, 3 no server answers, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"headgate {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, description: str | None = None) -> ArgumentParser:
        return commands.add_parser(
            name, help=help, description=description or f"{help[:1].upper()}{help[1:]}.", formatter_class=_wide
        )

    _serve(command("serve", "start a server", "Start a server and run it until Ctrl-C."))
    _keys(command("keys", "make, list, revoke and rotate API keys", _KEYS))
    for each in _client_commands(command):
        _connection(each)
    return top


def _wide(prog: str) -> HelpFormatter:
    """Room for the longest name beside what is said about it, which a wider indentation of commands would leave no room for."""
    return HelpFormatter(prog, indent_increment=1, max_help_position=40)


def _serve(serve: ArgumentParser) -> None:
    _configuration(serve)
    serve.add_argument("--host", metavar="H", help="address to listen on")
    serve.add_argument("--port", metavar="N", help="port to listen on; 0 is a free one")
    serve.add_argument("--role", choices=("all", "gateway", "orchestrator"), help="default: all, everything in one process")
    serve.add_argument("--workers", metavar="N", help="processes that share the port")
    serve.add_argument("--worker", action="store_true", help=SUPPRESS)


_KEYS = "Make, list, revoke and rotate API keys, directly in the database of a configuration, whether a server runs or not."


def _keys(keys: ArgumentParser) -> None:
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str) -> ArgumentParser:
        added = actions.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.", formatter_class=_wide)
        _configuration(added)
        added.add_argument("--json", action="store_true", help="one JSON object per line, for programs")
        return added

    create = action("create", "make a key, and print it this once")
    create.add_argument("--name", metavar="N", type=_matching(_KEY_NAME), required=True, help="for people: what it is for")
    create.add_argument("--tenant", metavar="T", type=_matching(_TENANT), default="default", help="default: default")
    scopes = [str(scope) for scope in Scope]
    create.add_argument(
        "--scope", metavar="S", action="append", choices=scopes, help=f"repeatable: {', '.join(scopes)}; default: all but admin"
    )
    create.add_argument("--limits", metavar="L", help="its own, as in the configuration: '{requests_per_minute: 60, runs: 2}'")
    create.add_argument("--expires", metavar="D", type=_duration, help="after how long, as in 90s, 12h, 30d; default: never")
    listing = action("list", "list keys, newest first")
    listing.add_argument("--tenant", metavar="T", help="only those of this tenant")
    revoke = action("revoke", "end a key, within 5 seconds everywhere, and with it what it is reading")
    revoke.add_argument("key_id", metavar="KEY_ID")
    rotate = action("rotate", "make a key like this one, which ends")
    rotate.add_argument("key_id", metavar="KEY_ID")
    rotate.add_argument(
        "--overlap",
        metavar="D",
        type=_duration,
        default=0.0,
        help="how long the old one goes on being good; default: 0, not at all",
    )


def _client_commands(command: _Command) -> list[ArgumentParser]:
    submit = command("submit", "ask, and stream the answer", "Ask, and stream the answer live. Ctrl-C cancels the task.")
    submit.add_argument("prompt", help="what to ask; - reads standard input")
    submit.add_argument(
        "--model", metavar="M", default=os.environ.get("HEADGATE_MODEL"), help="default: HEADGATE_MODEL, or the server's default"
    )
    submit.add_argument("--session", metavar="S", help="the session that the task belongs to")
    submit.add_argument("--detach", action="store_true", help="print the task's id and leave; the task goes on")

    stream = command("stream", "read a task's answer", "Read a task's answer from its start, then live until it ends.")
    _task(stream)
    stream.add_argument("--after", metavar="P", type=_position, help="only what follows this position: a seq or a stream_id")

    status = command("status", "look at a task")
    _task(status)

    listing = command("list", "list tasks, newest first")
    listing.add_argument("--status", choices=_STATES, metavar="S", help=f"only those in this state: {', '.join(_STATES)}")
    listing.add_argument("--session", metavar="S", help="only those of this session")
    listing.add_argument("--limit", metavar="N", type=int, default=20, help="at most so many; default: 20")
    listing.add_argument("--offset", metavar="N", type=int, default=0, help="leave out the newest N")

    controls = [
        command("cancel", "cancel a task"),
        command("pause", "pause a task at its next safe point"),
        command("resume", "let a paused task go on"),
    ]
    for control in controls:
        _task(control)
        control.add_argument("--reason", metavar="TEXT", help="for whoever reads the task's events")

    approvals = command("approvals", "list the decisions that tasks wait for")
    approvals.add_argument("--session", metavar="S", help="only what the tasks of this session wait for")

    approve = command("approve", "approve or deny what a task proposes")
    _task(approve)
    approve.add_argument("approval_id", metavar="APPROVAL_ID")
    approve.add_argument("--deny", action="store_true", help="deny it")
    approve.add_argument("--feedback", metavar="TEXT", help="given to the task")

    usage = command("usage", "show what was used, and what it cost", "Show what was used, this month if no days are named.")
    usage.add_argument("--from", dest="first", metavar="DAY", type=_day, help="the first day: 2026-11-01")
    usage.add_argument("--to", dest="last", metavar="DAY", type=_day, help="the last day; default: today")
    usage.add_argument("--by", metavar="WHAT", type=_groups, default=(), help="key, model and day, separated by commas")

    models = command("models", "list the models that can be asked")
    return [submit, stream, status, listing, *controls, approvals, approve, usage, models]


def _configuration(command: ArgumentParser) -> None:
    config = os.environ.get("HEADGATE_CONFIG")
    command.add_argument(
        "--config", metavar="FILE", type=Path, default=config and Path(config), help="default: HEADGATE_CONFIG, or none"
    )
    command.add_argument("--data", metavar="DIR", help="where embedded backends keep their data")


def _task(command: ArgumentParser) -> None:
    command.add_argument("task_id", metavar="TASK_ID")


def _connection(command: ArgumentParser) -> None:
    command.add_argument(
        "--url", metavar="U", default=os.environ.get("HEADGATE_URL", DEFAULT_URL), help=f"default: HEADGATE_URL, or {DEFAULT_URL}"
    )
    command.add_argument("--key", metavar="K", default=os.environ.get("HEADGATE_API_KEY"), help="default: HEADGATE_API_KEY")
    command.add_argument("--json", action="store_true", help="one JSON object per line, for programs")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ArgumentTypeError("a day is year, month and day: 2026-11-01") from None


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not set(names) <= {"key", "model", "day"}:
        raise ArgumentTypeError("key, model or day, or several of them with commas between them")
    return names


def _position(text: str) -> str:
    if not re.fullmatch(r"[0-9]+(-[0-9]+)?", text):
        raise ArgumentTypeError("a position is a seq (digits) or a stream_id (digits, '-', digits)")
    return text


def _matching(pattern: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ArgumentTypeError(f"should match {pattern}")
        return text

    return check


def _duration(text: str) -> float:
    """In seconds."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise ArgumentTypeError("a duration is a number and s, m, h or d, as in 90s or 30d")
    return float(int(match[1]) * _UNITS[match[2]])
