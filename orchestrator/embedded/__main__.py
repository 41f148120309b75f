"""`python -m orchestrator.embedded --data DIR`: the three backends until standard input closes, or SIGTERM, or Ctrl-C.

Progress goes to standard error. When all are ready, standard output gets one line: their addresses as a JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from orchestrator.embedded import EmbeddedError, Ports, embedded


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.embedded", description="Run Redis, Temporal and PostgreSQL.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder for data and logs")
    for name in Ports.__struct_fields__:
        parser.add_argument(f"--{name}-port", type=int, metavar="N", help="default: any free port")
    args = parser.parse_args()
    ports = Ports(redis=args.redis_port, temporal=args.temporal_port, postgres=args.postgres_port)
    try:
        asyncio.run(_serve(args.data, ports))
    except EmbeddedError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


async def _serve(data_dir: Path, ports: Ports) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    threading.Thread(target=_until_closed, args=(loop, stopping), daemon=True).start()
    async with embedded(data_dir, redis=None, temporal=None, postgres=None, progress=_progress, ports=ports) as addresses:
        print(msgspec.json.encode(addresses).decode(), flush=True)
        await stopping.wait()


def _until_closed(loop: asyncio.AbstractEventLoop, stopping: asyncio.Event) -> None:
    """In a thread, because standard input may be a file or /dev/null, which no event loop can watch."""
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stopping.set)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
