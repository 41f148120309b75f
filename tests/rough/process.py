"""`headgate serve` as a process that tests may kill, freeze and start again, and the same for its backends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from orchestrator.embedded import Addresses, pids

START_S = 40.0


class Headgate:
    """One server with its folder. It keeps its port over restarts, as a server behind an address does."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.url = ""
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        (folder / "config.yaml").write_text(json.dumps(settings))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def children(self) -> dict[str, int]:
        """The process ids of its embedded backends."""
        return pids(self.folder / "data")

    async def start(self) -> None:
        command = [sys.executable, "-m", "headgate", "serve", "--config", "config.yaml", "--data", "data"]
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--port", str(self._port), cwd=self.folder, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            announced = (await self._process.stdout.readline()).decode()
        found = re.search(r"http://\S+:(\d+)", announced)
        assert found, f"it did not start:\n{self.log()[-2000:]}"
        self.url, self._port = found[0], int(found[1])

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def kill9(self) -> float:
        """Returns when it happened, monotonic."""
        assert self._process is not None
        self.signal(signal.SIGKILL)
        killed = time.monotonic()
        await self._process.wait()
        return killed

    async def restart(self) -> float:
        """Kill it and start it again on the same data. Returns when it was killed."""
        killed = await self.kill9()
        await self.start()
        return killed

    async def stop(self, within_s: float = 30.0) -> int:
        """SIGTERM, and its exit status."""
        self.signal(signal.SIGTERM)
        return await self.exited(within_s)

    async def exited(self, within_s: float = 30.0) -> int:
        """Its exit status, when it has ended by itself."""
        assert self._process is not None
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def close(self) -> None:
        """However the test left it: end it, and wait for its backends to end."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGCONT)
            self._process.kill()
            await self._process.wait()
        for pid in self.children.values():
            resume(pid)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def errors(self) -> list[str]:
        """What it logged as errors: there should be none, whatever is done to it."""
        return [line for line in self.log().splitlines() if '"level":"error"' in line or line.startswith("Traceback")]


class Backends:
    """Redis, Temporal and PostgreSQL that no server takes with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        self.addresses = Addresses("", "", "")

    async def start(self) -> None:
        command = [sys.executable, "-m", "orchestrator.embedded", "--data", str(self._folder)]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(START_S):
            self.addresses = msgspec.json.decode(await self._process.stdout.readline(), type=Addresses)

    async def close(self) -> None:
        """They end with this process's input; nobody needs what they would still write."""
        if self._process is None:
            return
        for pid in pids(self._folder).values():
            for process in _family(pid):
                process.kill()
        self._process.kill()
        await self._process.wait()


def pause(pid: int) -> None:
    """Freeze a program with its children: its sockets stay open and nothing answers on them."""
    for process in _family(pid):
        process.suspend()


def resume(pid: int) -> None:
    """Let it go on. One that has ended needs nothing."""
    for process in _family(pid):
        process.resume()


@asynccontextmanager
async def paused(pid: int) -> AsyncIterator[None]:
    pause(pid)
    try:
        yield
    finally:
        resume(pid)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
