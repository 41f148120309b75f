"""The data folder: held by one Headgate at a time, with the children's data, logs and secret under it.

    lock          held by us: a second start is refused while we live
    children      held by us and, inherited, by every child: a start after kill -9 waits until the last child is gone
    pids.json     the children's process ids, for people and tests
    secret        the password of Redis and PostgreSQL; only their owner may read it
    logs/         one file per child, rotated at start once it has grown large
    redis/ temporal/ postgres/

Both locks are `flock`s: the kernel releases them when the last process that holds them is gone, however it went, so no process
id is ever guessed to be alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO

from orchestrator.embedded.backend import EmbeddedError

LEFTOVERS_TIMEOUT_S = 15.0
_POLL_S = 0.05
_MAX_LOG_BYTES = 10_000_000
_TAIL_LINES = 6


class FolderInUse(EmbeddedError):
    """Another Headgate holds the data folder."""


class DataDir:
    """A folder that this process holds. `children_lock` must be inherited by everything that touches the data."""

    def __init__(self, path: Path, children_lock: int) -> None:
        self.path = path
        self.children_lock = children_lock
        self._pids: dict[str, int] = {}

    def folder(self, name: str) -> Path:
        """The folder of one backend, private to its owner."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def secret(self) -> str:
        """Made once per data folder."""
        path = self.path / "secret"
        if not path.exists():
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(16))
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
        return path.read_text().strip()

    def log_path(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def open_log(self, name: str) -> BinaryIO:
        """For appending; a log that has grown large becomes `NAME.log.1` first."""
        path = self.log_path(name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
            path.rename(path.with_suffix(".log.1"))
        return path.open("ab")

    def log_tail(self, name: str, since: int) -> str:
        """The last lines that were logged after offset `since`, indented, and where the rest is."""
        path = self.log_path(name)
        with path.open("rb") as log:
            log.seek(max(since, path.stat().st_size - 4096))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([*(f"    {line}" for line in lines), f"    (log: {path})"])

    def record_pid(self, name: str, pid: int) -> None:
        self._pids[name] = pid
        path = self.path / "pids.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self._pids))
        new.rename(path)


def pids(data_dir: Path) -> dict[str, int]:
    """The process ids of the children that were last started on this folder, by backend."""
    try:
        recorded = json.loads((data_dir / "pids.json").read_text())
    except FileNotFoundError:
        return {}
    return {str(name): int(pid) for name, pid in recorded.items()}


@asynccontextmanager
async def hold(
    path: Path, progress: Callable[[str], None], leftovers_timeout_s: float = LEFTOVERS_TIMEOUT_S
) -> AsyncIterator[DataDir]:
    """Take the folder for ourselves, creating it if needed. Raises EmbeddedError if another process has it."""
    with ExitStack() as stack:
        with usable(path):
            path = _create(path)
            lock = stack.enter_context(_lock_file(path / "lock"))
            children = stack.enter_context(_lock_file(path / "children"))
            _take(lock, path)
        await _outlive_leftovers(path, children, progress, leftovers_timeout_s)
        yield DataDir(path, children)


def _create(path: Path) -> Path:
    """Passable but not listable: PostgreSQL may run as another user (see `leash`) and must get through to its own folder."""
    path = path.absolute()
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    return path


def _take(lock: int, path: Path) -> None:
    """Become the holder, and leave our process id for the message that the next one gets."""
    if not _try_lock(lock):
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        raise FolderInUse(
            f"The data folder {path} is in use by another Headgate (process {holder}). Stop it, or choose another "
            "folder with --data."
        )
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


async def _outlive_leftovers(path: Path, children: int, progress: Callable[[str], None], timeout_s: float) -> None:
    """Wait for the children of a Headgate that was killed; two servers on one database would destroy it."""
    if _try_lock(children):
        return
    progress(f"waiting for the backends of an earlier run to finish in {path}")
    try:
        async with asyncio.timeout(timeout_s):
            while not _try_lock(children):  # noqa: ASYNC110 - the kernel has no flock that can be awaited
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        left = ", ".join(f"{name} {pid}" for name, pid in pids(path).items())
        raise EmbeddedError(
            f"Backends of an earlier run still use the data folder {path} after {timeout_s:g} s. "
            f"End them first; their processes were: {left}."
        ) from None


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Files below `path` are touched here; what goes wrong with them is told to whoever started us."""
    try:
        yield
    except OSError as error:
        raise EmbeddedError(
            f"The data folder {path} cannot be used: {error.strerror or error} ({error.filename or path}). Make it writable for "
            f"user id {os.geteuid()}, or choose another folder with --data."
        ) from error


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
