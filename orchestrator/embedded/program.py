"""Starting programs under the leash, with their output in a log file and none of our environment.

Our environment holds the keys of model servers; children get only what they need. A session of their own keeps Ctrl-C in the
terminal for us, so that they are still there while we finish.
"""

from __future__ import annotations

import asyncio
import os
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


async def spawn(backend: Backend, command: Sequence[str], data: DataDir) -> asyncio.subprocess.Process:
    """Start `command` for `backend`. Raises EmbeddedError if it cannot be executed."""
    with data.open_log(backend.name) as log:
        try:
            return await asyncio.create_subprocess_exec(
                *leashed(command, backend.stop_signal, backend.run_as),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=backend.folder,
                env={**ENVIRONMENT, "HOME": str(backend.folder)},
                pass_fds=(data.children_lock,),
                start_new_session=True,
            )
        except OSError as error:
            raise EmbeddedError(f"{backend.name} could not be started: {error}") from error


async def run(backend: Backend, command: Sequence[str], data: DataDir, timeout_s: float) -> None:
    """Run `command` to its end. Raises EmbeddedError with its last lines if it fails or takes too long."""
    since = log_size(data, backend.name)
    process = await spawn(backend, command, data)
    try:
        async with asyncio.timeout(timeout_s):
            returncode = await process.wait()
    except TimeoutError:
        returncode = None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if returncode != 0:
        how = "took too long" if returncode is None else f"failed with status {returncode}"
        raise EmbeddedError(f"{backend.name}: {command[0]} {how}:\n{data.log_tail(backend.name, since)}")


def log_size(data: DataDir, name: str) -> int:
    path = data.log_path(name)
    return path.stat().st_size if path.exists() else 0


async def output(*command: str) -> str:
    """What a program that exits by itself (`--version`) prints."""
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT)
    async with asyncio.timeout(10):
        text, _ = await process.communicate()
    return text.decode(errors="replace")
