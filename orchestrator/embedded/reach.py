"""The embedded PostgreSQL of a data folder, for a command beside the server: that of the server if one runs, else one of its own.

Whoever holds the folder has the only one: a server that is started while the command has it is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from orchestrator.embedded.backend import EmbeddedError
from orchestrator.embedded.backends import embedded
from orchestrator.embedded.datadir import FolderInUse
from orchestrator.embedded.postgres import running_address

STARTING_S = 20.0
_POLL_S = 0.1
_UNUSED = "unused"
"""An address keeps a backend from being started."""


@asynccontextmanager
async def postgres(data_dir: Path, progress: Callable[[str], None]) -> AsyncIterator[str]:
    """Its address. Raises EmbeddedError."""
    async with AsyncExitStack() as stack:
        try:
            backends = embedded(data_dir, redis=_UNUSED, temporal=_UNUSED, postgres=None, progress=progress)
            address = (await stack.enter_async_context(backends)).postgres
        except FolderInUse as held:
            address = await _running(data_dir, held)
        yield address


async def _running(data_dir: Path, held: EmbeddedError) -> str:
    """That of the process which holds the folder, which may be about to start it."""
    for _ in range(round(STARTING_S / _POLL_S)):
        if (address := running_address(data_dir)) is not None:
            return address
        await asyncio.sleep(_POLL_S)
    raise held
