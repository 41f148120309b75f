"""The `headgate` command: start a server, ask it, and read its runs.

Exit codes: 0 the answer is complete; 1 the run or the request failed; 2 wrong usage or configuration; 3 no server answers;
130 interrupted. Answers go to standard output, everything about them to standard error.
"""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from gateway.settings_errors import ConfigError
from headgate import __version__
from headgate.chat_door import Refused, ServerGone
from headgate.terminal import complain
from orchestrator.errors import HeadgateError

OK, FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130

DEFAULT_URL = "http://127.0.0.1:8080"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answer has seen enough. What is still buffered goes nowhere, or the exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ConfigError as error:
        complain("\n  ".join(["the configuration is not valid:", *error.lines]))
        return USAGE
    except ServerGone as error:
        complain(str(error))
        return NO_SERVER
    except Refused as error:
        complain(error.message + (f" ({error.code})" if error.code else ""))
        return FAILED
    except (HeadgateError, OSError) as error:
        complain(str(error))
        return FAILED
    return OK


def _run(arguments: Namespace) -> None:
    # Each side is imported when it is used: a client starts without loading a server.
    if arguments.command == "serve":
        # Or gRPC, which never runs in them, writes a warning about each child process. It looks when it is imported.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        from headgate.serve import serve

        serve(arguments)
    else:
        from headgate import commands

        asyncio.run(
            {"submit": commands.submit, "stream": commands.stream, "models": commands.models}[arguments.command](arguments)
        )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="headgate",
        description="An OpenAI-compatible streaming gateway for durable agent runs.",
        epilog="Exit codes: 0 complete, 1 failed, 2 usage or configuration, 3 no server answers, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"headgate {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="start a server", description="Start a server and run it until Ctrl-C.")
    config = os.environ.get("HEADGATE_CONFIG")
    serve.add_argument(
        "--config", metavar="FILE", type=Path, default=config and Path(config), help="default: HEADGATE_CONFIG, or none"
    )
    serve.add_argument("--host", metavar="H", help="address to listen on")
    serve.add_argument("--port", metavar="N", help="port to listen on; 0 is a free one")
    serve.add_argument("--data", metavar="DIR", help="where embedded backends keep their data")
    serve.add_argument("--role", choices=("all", "gateway", "orchestrator"), help="default: all, everything in one process")
    serve.add_argument("--workers", metavar="N", help="processes that share the port")
    serve.add_argument("--worker", action="store_true", help=SUPPRESS)

    submit = commands.add_parser("submit", help="ask, and stream the answer", description="Ask, and stream the answer live.")
    submit.add_argument("prompt", help="what to ask; - reads standard input")
    submit.add_argument(
        "--model", metavar="M", default=os.environ.get("HEADGATE_MODEL"), help="default: HEADGATE_MODEL, or the first one listed"
    )

    stream = commands.add_parser(
        "stream", help="read a run's answer", description="Read a run's answer from its start, then live until it ends."
    )
    stream.add_argument("run_id", metavar="RUN_ID")
    stream.add_argument("--after", metavar="N", type=int, default=0, help="only what follows the first N chunks")

    models = commands.add_parser("models", help="list the models", description="List the models that can be asked.")

    for command in (submit, stream, models):
        command.add_argument(
            "--url",
            metavar="U",
            default=os.environ.get("HEADGATE_URL", DEFAULT_URL),
            help=f"default: HEADGATE_URL, or {DEFAULT_URL}",
        )
        command.add_argument("--key", metavar="K", default=os.environ.get("HEADGATE_API_KEY"), help="default: HEADGATE_API_KEY")
        command.add_argument("--json", action="store_true", help="one JSON object per line, for programs")
    return parser
