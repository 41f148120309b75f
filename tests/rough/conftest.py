"""Whole processes, and what is outside of all of them: an upstream on a real socket, and a client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, client
from tests.rough.process import Backends, Headgate

Serve = Callable[..., Awaitable[Headgate]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is rough."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.rough)


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedServer]:
    """A model server in the test's own process, so that its witness survives whatever is killed."""
    async with ScriptedServer().running() as server:
        yield server


@pytest.fixture
async def asking() -> AsyncIterator[Client]:
    async with client() as asking:
        yield asking


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    """Backends for several servers, and of this test alone: what one test leaves running, no other takes over."""
    outside = Backends(tmp_path / "backends")
    try:
        await outside.start()
        yield outside
    finally:
        await outside.close()


@pytest.fixture
async def serve(tmp_path: Path, upstream: ScriptedServer) -> AsyncIterator[Serve]:
    """Start a server: `await serve()`, with embedded backends, or `await serve(backends)`; further settings by section.

    Its models are `durable` and `inline` (`durability: none`), whose upstream is `upstream`.
    """
    async with AsyncExitStack() as stack:
        count = 0

        async def start(outside: Backends | None = None, **sections: Any) -> Headgate:
            nonlocal count
            count += 1
            settings = {**_settings(upstream.base_url), **sections}
            if outside is not None:
                settings["backends"] = msgspec.to_builtins(outside.addresses)
            server = Headgate(tmp_path / f"server-{count}", settings)
            stack.push_async_callback(server.close)
            await server.start()
            return server

        yield start


def _settings(base_url: str) -> dict[str, Any]:
    agent = {"agent": {"upstream": "remote"}}
    return {
        "server": {"port": 0, "drain_s": 1.0},
        "grpc": {"port": 0},
        "streams": {"hold_s": 0.2, "keepalive_s": 1.0},
        "upstreams": {"remote": {"kind": "openai", "base_url": base_url}},
        "models": {"durable": {"plan": agent}, "inline": {"plan": agent, "durability": "none"}},
    }
