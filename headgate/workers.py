"""Several serving processes on one port, and the one that looks after them: `headgate serve --workers N`.

The kernel deals new connections out to the workers (SO_REUSEPORT), so one that is gone gets none. The parent serves nothing: it
holds the port and the embedded backends, whose addresses the workers find in their environment. A worker that dies is replaced,
after a pause that grows while it keeps dying; one that cannot start the first time ends them all. A signal to the parent is one
to each worker, and workers do not outlive it, however it goes (see `orchestrator.embedded.leash`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

from gateway import rpc
from gateway.app import stop_signal
from gateway.observe import logs
from gateway.settings import Settings
from gateway.settings_layers import PREFIX
from gateway.wiring import configuration
from orchestrator.embedded import embedded
from orchestrator.embedded.leash import leashed
from orchestrator.embedded.program import Process
from orchestrator.errors import HeadgateError

log = logs.logger(__name__)

_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)
_STEADY_S = 30.0
"""A worker that has lived for so long is replaced without much of a pause."""

_LAST_WORDS_S = 10.0
"""How long a worker may take beyond its drain."""


class WorkerFailed(HeadgateError):
    """A worker could not be started. Its own message is above."""

    code = "worker_failed"


class Worker:
    """One place in the row, whichever process fills it. `number` is for the log."""

    def __init__(self, number: int, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._number = number
        self._command = leashed(command, signal.SIGTERM, None)
        self._environ = environ
        self._process: Process | None = None
        self._begun = 0.0

    async def start(self) -> str:
        """Returns the URL that it announces. Raises WorkerFailed if it ends before."""
        process = self._spawn()
        self._process, self._begun = Process(process), time.monotonic()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
        try:
            url = (await reader.readline()).decode().strip()
        finally:
            transport.close()  # it says nothing more
        if not url:
            raise WorkerFailed
        log.info("worker_started", worker=self._number, process=process.pid)
        return url

    def _spawn(self) -> subprocess.Popen[bytes]:
        """In a session of its own, so that Ctrl-C in the terminal is for the parent, which passes it on."""
        return subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=self._environ, start_new_session=True
        )

    async def keep(self) -> None:
        """Replace it whenever it dies, until cancelled."""
        losses = 0
        while True:
            assert self._process is not None
            status = await self._process.wait()
            losses = 0 if time.monotonic() - self._begun >= _STEADY_S else losses + 1
            pause_s = _PAUSES_S[min(losses, len(_PAUSES_S)) - 1] if losses else 0.0
            log.warning("worker_lost", worker=self._number, status=status, again_in_s=pause_s)
            await asyncio.sleep(pause_s)
            try:
                await self.start()
            except WorkerFailed:
                continue

    async def stop(self, within_s: float) -> None:
        """Ask it to drain and end, and insist after `within_s`."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
                await self._process.wait()
        except TimeoutError:
            log.warning("worker_killed", worker=self._number)
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


async def supervise(
    settings: Settings, flags: Sequence[str], *, announce: Callable[[str], None], progress: Callable[[str], None]
) -> None:
    """Serve with `server.workers` processes until SIGTERM or SIGINT. `flags` are those of `serve` that every worker gets.

    Raises WorkerFailed, and OSError when the port cannot be had.
    """
    stop = stop_signal()
    async with _backends(settings, progress) as addresses:
        with ExitStack() as ports:
            inside = settings.role == "orchestrator"
            address = settings.orchestrator if inside else settings.server
            environ = {**os.environ, **addresses}
            if settings.grpc.enabled and not inside:
                port = _grpc_port(settings, ports)
                environ[f"{PREFIX}GRPC__PORT"] = str(port)
                progress(f"gRPC listens on port {port}")
            port = ports.enter_context(held(address.host, address.port))
            command = [sys.executable, "-m", "headgate", "serve", "--worker", *flags, "--port", str(port)]
            workers = [Worker(number, command, environ) for number in range(1, settings.server.workers + 1)]
            drain_s = settings.server.drain_notice_s + settings.server.drain_s
            await _run(workers, stop, announce, progress, drain_s + _LAST_WORDS_S)


async def _run(
    workers: Sequence[Worker],
    stop: asyncio.Event,
    announce: Callable[[str], None],
    progress: Callable[[str], None],
    stop_s: float,
) -> None:
    keepers: list[asyncio.Task[None]] = []
    stopped = asyncio.create_task(stop.wait())
    starting = asyncio.gather(*(worker.start() for worker in workers))
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            announce(starting.result()[0])
            keepers = [asyncio.create_task(worker.keep()) for worker in workers]
            await asyncio.wait((stopped, *keepers), return_when=asyncio.FIRST_COMPLETED)
    finally:
        progress("Stopping ...")
        starting.cancel()
        for task in (stopped, *keepers):
            task.cancel()
        kept = await asyncio.gather(*keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop(stop_s) for worker in workers))
    for outcome in kept:
        if isinstance(outcome, Exception):  # a mistake of ours; being cancelled is not one
            raise outcome


@asynccontextmanager
async def _backends(settings: Settings, progress: Callable[[str], None]) -> AsyncIterator[Mapping[str, str]]:
    """The embedded backends, as the environment variables that say where they are."""
    if settings.role == "gateway":
        yield {}
        return
    config = configuration(settings)
    temporal = config.temporal.target if config.temporal else None
    async with embedded(
        config.data_dir, redis=config.redis, temporal=temporal, postgres=config.postgres, progress=progress
    ) as addresses:
        own = [name for name in ("redis", "temporal", "postgres") if getattr(settings.backends, name) == "embedded"]
        yield {f"{PREFIX}BACKENDS__{name.upper()}": getattr(addresses, name) for name in own}


def _grpc_port(settings: Settings, ports: ExitStack) -> int:
    host, port = settings.grpc.host or settings.server.host, settings.grpc.port
    if port is not None:
        return ports.enter_context(held(host, port))
    try:
        return ports.enter_context(held(host, rpc.PORT))
    except OSError:
        return ports.enter_context(held(host, 0))


@contextmanager
def held(host: str, port: int) -> Iterator[int]:
    """A port that only our workers can have: bound here, where nobody listens. Raises OSError if somebody else has it."""
    [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    with socket.socket(family, kind, protocol) as alone:
        # Two that are both willing to share a port would: ask first as one who is not.
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind(address)
        alone.listen()
    with socket.socket(family, kind, protocol) as shared:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
        yield shared.getsockname()[1]
