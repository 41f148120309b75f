"""Starting programs under the leash, with their output in a log file and none of our environment.

Our environment holds the keys of model servers; children get only what they need. A session of their own keeps Ctrl-C in the
terminal for us, so that they are still there while we finish.

`subprocess` starts them and not the event loop: uvloop forks, and the fork handlers of gRPC, which has threads in this process,
crashed about one child in a hundred between fork and exec. `subprocess` uses vfork, which runs no handlers.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from orchestrator.embedded.backend import Backend, EmbeddedError
from orchestrator.embedded.datadir import DataDir
from orchestrator.embedded.leash import leashed

ENVIRONMENT: Mapping[str, str] = {
    "PATH": os.defpath,
    "LC_ALL": "C",
    "TZ": "UTC",
    # Nothing that we start calls home.
    "TEMPORAL_VERSION_CHECK_DISABLED": "1",
}


class Process:
    """A running program whose end can be awaited. Belongs to the event loop that was running when it was started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.pid = process.pid
        self.returncode: int | None = None
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        threading.Thread(target=self._reap, name=f"wait for {self.pid}", daemon=True).start()

    async def wait(self) -> int:
        """Its status; the negative number of the signal that killed it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def _reap(self) -> None:
        returncode = self._process.wait()
        self._loop.call_soon_threadsafe(self._end, returncode)

    def _end(self, returncode: int) -> None:
        self.returncode = returncode
        self._ended.set()


def spawn(backend: Backend, command: Sequence[str], data: DataDir) -> Process:
    """Start `command` for `backend`. Raises EmbeddedError if it cannot be executed."""
    with data.open_log(backend.name) as log:
        try:
            return Process(
                subprocess.Popen(
                    leashed(command, backend.stop_signal, backend.run_as),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=backend.folder,
                    env={**ENVIRONMENT, "HOME": str(backend.folder)},
                    pass_fds=(data.children_lock,),
                    start_new_session=True,
                )
            )
        except OSError as error:
            raise EmbeddedError(f"{backend.name} could not be started: {error}") from error


async def run(backend: Backend, command: Sequence[str], data: DataDir, timeout_s: float) -> None:
    """Run `command` to its end. Raises EmbeddedError with its last lines if it fails or takes too long."""
    since = log_size(data, backend.name)
    process = spawn(backend, command, data)
    try:
        async with asyncio.timeout(timeout_s):
            returncode: int | None = await process.wait()
    except TimeoutError:
        returncode = None
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    if returncode != 0:
        how = "took too long" if returncode is None else f"failed with status {returncode}"
        raise EmbeddedError(f"{backend.name}: {command[0]} {how}:\n{data.log_tail(backend.name, since)}")


def log_size(data: DataDir, name: str) -> int:
    path = data.log_path(name)
    return path.stat().st_size if path.exists() else 0


async def output(*command: str) -> str:
    """What a program that exits by itself (`--version`) prints."""

    def run() -> str:
        return subprocess.run(command, stdout=subprocess.PIPE, env=ENVIRONMENT, timeout=10, check=False).stdout.decode(
            errors="replace"
        )

    try:
        return await asyncio.to_thread(run)
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{' '.join(command)} did not answer within {error.timeout:g} s") from None
