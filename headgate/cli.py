"""The `headgate` command: start a server, ask it, and watch and control its tasks.

Exit codes: 0 the answer is complete; 1 the task or the request failed; 2 wrong usage or configuration; 3 no server answers;
130 interrupted. Answers go to standard output, everything about them to standard error.
"""

from __future__ import annotations

import asyncio
import os
import sys
from argparse import Namespace
from collections.abc import Sequence

from gateway.settings_errors import ConfigError
from headgate.arguments import parser
from headgate.errors import ClientError, ServerGone, Unauthorized
from headgate.terminal import complain
from orchestrator.errors import HeadgateError

OK, FAILED, USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    commands = parser()
    if not (sys.argv[1:] if argv is None else argv):
        commands.print_help(sys.stderr)
        return USAGE
    arguments = commands.parse_args(argv)
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
        complain(f"{error} `headgate serve` starts a server, --url or HEADGATE_URL names another.")
        return NO_SERVER
    except Unauthorized as error:
        complain(f"{error}\n  Name a key with --key or HEADGATE_API_KEY.")
        return FAILED
    except (ClientError, HeadgateError, OSError) as error:
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
    elif arguments.command == "keys":
        from headgate import keys

        keys.run(arguments)
    else:
        from headgate import commands

        asyncio.run(commands.run(arguments))
