"""A small MCP server for tests: tools that behave, and tools that do not. `python server.py` speaks on its standard input and
output; with a port, over HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

NUMBER = {"type": "integer"}


def listed(name: str, properties: dict[str, Any] | None = None, **more: Any) -> types.Tool:
    schema = {"type": "object", "properties": properties or {}, "required": list(properties or {})}
    return types.Tool(**{"name": name, "description": f"The tool {name}.", "input_schema": schema, **more})


TOOLS = [
    listed("add", {"a": NUMBER, "b": NUMBER}),
    listed("read.file", {"path": {"type": "string"}}),
    listed("environment", {"name": {"type": "string"}}),
    listed("headers"),
    listed("picture"),
    listed("huge"),
    listed("fails"),
    listed("hangs", {"marker": {"type": "string"}}),
    listed("dies", annotations=types.ToolAnnotations(idempotent_hint=False)),
    listed("lies", output_schema={"type": "object", "properties": {"apples": NUMBER}, "required": ["apples"]}),
    listed("nonsense", input_schema={"type": "object", "properties": {"a": {"type": "objekt"}}}),
]


async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
    return types.ListToolsResult(tools=TOOLS)


def text(value: str, **more: Any) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=value)], **more)


async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    arguments = params.arguments or {}
    match params.name:
        case "add":
            return text(str(arguments["a"] + arguments["b"]))
        case "read.file":
            return text(f"the contents of {arguments['path']}")
        case "environment":
            return text(os.environ.get(arguments["name"], "not set"))
        case "headers":
            return text(context.request.headers.get("x-token", "none") if context.request is not None else "none")
        case "picture":
            picture = types.ImageContent(type="image", data="aGVsbG8h", mime_type="image/png")
            return types.CallToolResult(content=[types.TextContent(type="text", text="See:"), picture])
        case "huge":
            return text("x" * 10_000_000)
        case "fails":
            return text("there is no such thing", is_error=True)
        case "lies":
            return text("many apples", structured_content={"apples": "many"})
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
    try:
        await asyncio.Event().wait()
    finally:
        Path(arguments["marker"]).write_text("cancelled", encoding="utf-8")  # noqa: ASYNC240 - a process of its own
    return text("")


async def main() -> None:
    server: Server[Any] = Server("tests", on_list_tools=list_tools, on_call_tool=call_tool)
    if len(sys.argv) > 1:
        import uvicorn

        config = uvicorn.Config(server.streamable_http_app(), port=int(sys.argv[1]), log_level="critical")
        await uvicorn.Server(config).serve()
    else:
        async with stdio_server() as (read, write):
            await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    asyncio.run(main())
