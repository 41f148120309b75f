"""All tools of a configuration, for all agents of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.tools import config as configs
from orchestrator.tools.config import BETWEEN, McpTools, PythonTool, ToolConfig
from orchestrator.tools.function import FunctionTool, load
from orchestrator.tools.redaction import Redactor
from orchestrator.tools.threads import Threads
from orchestrator.tools.tool import Tool, ToolUnavailable
from orchestrator.tools.toolbox import Toolbox

if TYPE_CHECKING:
    from orchestrator.tools.mcp_server import McpServer

_RESULT_BYTES = 64 * 1024


class Tools:
    """`secrets` are what must never be in a log, beside those of the tools' own configuration."""

    def __init__(self, config: Mapping[str, ToolConfig], secrets: Iterable[str] = ()) -> None:
        """Imports the functions. Raises ToolNotLoaded."""
        self.redactor = Redactor([*secrets, *configs.secrets(config)])
        self.threads = Threads()
        self._functions: dict[str, FunctionTool] = {}
        self._servers: dict[str, McpServer] = {}
        for name, entry in config.items():
            match entry:
                case PythonTool():
                    self._functions[name] = load(
                        name, entry.python, self.threads, timeout_s=entry.timeout_s, max_result_bytes=int(entry.max_result_bytes)
                    )
                case McpTools():
                    # Its SDK takes a third of the time in which a server starts, and most have no use for it.
                    from orchestrator.tools.mcp_server import McpServer

                    self._servers[name] = McpServer(name, entry, self.redactor)

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """A function that is at hand, with the decorator; the configuration names those that are not."""
        self._functions[name] = FunctionTool(name, function, self.threads, timeout_s=None, max_result_bytes=_RESULT_BYTES)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The servers start in the background: nobody waits for them who does not need them."""
        async with AsyncExitStack() as stack:
            for server in self._servers.values():
                await stack.enter_async_context(server.running())
            yield

    async def offer(self, names: Sequence[str], timeout_s: float) -> Toolbox:
        """What an agent with these `tools` may call; waits for servers that still start. Raises ToolUnavailable."""
        tools: dict[str, Tool] = {}
        for name in names:
            for tool in await self._named(name):
                tools[tool.name] = tool
        return Toolbox(list(tools.values()), timeout_s)

    async def _named(self, name: str) -> Sequence[Tool]:
        if (function := self._functions.get(name)) is not None:
            return [function]
        if (server := self._servers.get(name)) is not None:
            return await server.tools()
        prefix, between, _ = name.partition(BETWEEN)
        if between and (server := self._servers.get(prefix)) is not None:
            found = [tool for tool in await server.tools() if tool.name == name]
            if not found:
                raise ToolUnavailable(f"The MCP server {prefix} has no tool '{name}'.")
            return found
        raise ToolUnavailable(f"The tool '{name}' is not configured any more.")
