"""One backend as a child process: started, watched, started again when it dies, stopped.

It keeps its port for as long as it is ours, so that clients reconnect where they were.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from orchestrator.embedded import ports, program
from orchestrator.embedded.backend import HOST, Backend, EmbeddedError, NotReady
from orchestrator.embedded.datadir import DataDir, usable

READY_TIMEOUT_S = 600  # a large append-only file or a crash recovery takes its time
REPORT_INTERVAL_S = 10
STOP_TIMEOUT_S = 10.0
_PROBE_INTERVAL_S = 0.02
_PORT_ATTEMPTS = 3
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0
_STABLE_S = 30.0


class PortTaken(EmbeddedError):
    """Another process listens on the port of a child."""


class Child:
    def __init__(self, backend: Backend, data: DataDir, port: int | None, progress: Callable[[str], None]) -> None:
        self.backend = backend
        self.port = port or 0
        self._port_is_fixed = port is not None
        self._data = data
        self._progress = progress
        self._process: program.Process | None = None

    @property
    def address(self) -> str:
        return self.backend.address(self.port)

    async def start(self) -> None:
        """Prepare the data, start the server, wait until it answers. Raises EmbeddedError; `stop` even so."""
        began = time.monotonic()
        with usable(self._data.path):
            await self.backend.prepare()
            version = await self._launch_somewhere()
        self._say(f"ready on {HOST}:{self.port}  ({version}, {time.monotonic() - began:.2f} s)")

    async def watch(self) -> None:
        """Start the server again whenever it exits, for ever. A port or a disk that is in the way is tried again too."""
        pause_s = _FIRST_PAUSE_S
        while True:
            assert self._process is not None, "watched before it was started"
            began = time.monotonic()
            returncode = await self._process.wait()
            if time.monotonic() - began > _STABLE_S:
                pause_s = _FIRST_PAUSE_S
            self._say(f"{_ending(returncode)}, starting it again  (log: {self._data.log_path(self.backend.name)})")
            began = time.monotonic()
            while (version := await self._relaunch(pause_s)) is None:
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._say(f"ready again on {HOST}:{self.port}  ({version}, {time.monotonic() - began:.2f} s)")

    async def stop(self) -> None:
        """Ask the server to finish, and end it if it does not within a bound."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(self.backend.stop_signal)
        if not await _ended_within(process, STOP_TIMEOUT_S):
            self._say(f"did not stop within {STOP_TIMEOUT_S:.0f} s, killing it")
            process.send_signal(signal.SIGKILL)
            await process.wait()

    async def _launch_somewhere(self) -> str:
        for attempt in range(_PORT_ATTEMPTS):
            if not self._port_is_fixed:
                self.port = ports.choose()
            try:
                return await self._launch()
            except PortTaken:
                if self._port_is_fixed or attempt == _PORT_ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")

    async def _relaunch(self, pause_s: float) -> str | None:
        await asyncio.sleep(pause_s)
        try:
            with usable(self._data.path):
                return await self._launch()
        except EmbeddedError as error:
            self._say(error.message)
            await self.stop()
            return None

    async def _launch(self) -> str:
        """Start the server on our port. Returns its version when it answers."""
        if not ports.is_free(self.port):
            raise self._port_taken()
        name = self.backend.name
        since = program.log_size(self._data, name)
        process = self._process = program.spawn(self.backend, self.backend.command(self.port), self._data)
        self._data.record_pid(name, process.pid)
        version = await self._ready(process)
        if version is not None:
            return version
        if not ports.is_free(self.port):
            raise self._port_taken()
        ending = _ending(await process.wait())
        raise EmbeddedError(f"{name} {ending} before it was ready:\n{self._data.log_tail(name, since)}")

    async def _ready(self, process: program.Process) -> str | None:
        """The version that the server reports when it answers, or None if it exits first.

        Asked again and again, because none of the three can tell by itself. A probe is bounded by its client and never
        cancelled from here: redis-py loses a cancellation that comes while it connects, and we would wait for ever.
        """
        began = time.monotonic()
        report_s = REPORT_INTERVAL_S
        while process.returncode is None:
            try:
                return await self.backend.probe(self.port)
            except NotReady:
                await _ended_within(process, _PROBE_INTERVAL_S)
            waited_s = time.monotonic() - began
            if waited_s > READY_TIMEOUT_S:
                log = self._data.log_path(self.backend.name)
                raise EmbeddedError(f"{self.backend.name} was not ready after {waited_s:.0f} s  (log: {log})")
            if waited_s > report_s:
                self._say(f"still starting after {waited_s:.0f} s")
                report_s += REPORT_INTERVAL_S
        return None

    def _port_taken(self) -> PortTaken:
        return PortTaken(
            f"{self.backend.name} cannot listen on {HOST}:{self.port}: another process has this port. Stop that process, or "
            "configure another port."
        )

    def _say(self, text: str) -> None:
        self._progress(f"{self.backend.name:<10} {text}")


async def _ended_within(process: program.Process, timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


def _ending(returncode: int) -> str:
    return f"was killed by {signal.Signals(-returncode).name}" if returncode < 0 else f"exited with status {returncode}"
