"""A small MCP server for tests: well-behaved tools, and some that are not. `python server.py`, or with a port for HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import mcp_types as types
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult, TextContent
from pydantic import Field

server = MCPServer("tests")


@server.tool()
def add(a: int, b: Annotated[int, Field(description="The other one.")]) -> int:
    """The sum of two numbers."""
    return a + b


@server.tool(name="read.file")
def read_file(path: str) -> str:
    """What a file says."""
    return f"the contents of {path}"


@server.tool()
def environment(name: str) -> str:
    return os.environ.get(name, "not set")


@server.tool()
def huge() -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text="x" * 10_000_000)])


@server.tool()
def fails() -> str:
    raise ValueError("there is no such thing")


@server.tool()
async def hangs(marker: str) -> str:
    """Leaves a file when its request is cancelled."""
    try:
        await asyncio.Event().wait()
    finally:
        Path(marker).write_text("cancelled", encoding="utf-8")  # noqa: ASYNC240 - a few bytes, in a process of its own
    return ""


@server.tool(annotations=types.ToolAnnotations(idempotent_hint=False))
def dies() -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


@server.tool()
def lies() -> dict[str, Any]:
    """Its output schema promises a number of apples."""
    return {"apples": "many"}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
