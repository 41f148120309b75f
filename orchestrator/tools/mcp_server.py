"""An MCP server of the configuration: started with this process, started again when it is lost, stopped with this process.

One task holds the connection; agents call through it. While the server is away, calls fail at once and say so. Its tools are
listed each time it is started; those of the last time are offered while it is away.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import mcp_types as types
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from orchestrator.tools.config import McpTools, StdioServer
from orchestrator.tools.mcp_stream import Transport, watched
from orchestrator.tools.mcp_tool import McpTool
from orchestrator.tools.redaction import Redactor
from orchestrator.tools.tool import CallFailed, ToolBroken, ToolUnavailable

_log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 30.0
_STEADY_S = 10.0
"""A connection that lasts so long was a good one."""

_STOP_S = 10.0
_MOST_PAGES = 100
_SAID = 500
_WHO = types.Implementation(name="headgate", version="1")
_SESSION_LOST = "Session terminated"


class McpServer:
    def __init__(self, name: str, config: McpTools, redactor: Redactor) -> None:
        self.name = name
        self._config = config
        self._redactor = redactor
        self._tools: Sequence[McpTool] | None = None
        self._stopping = False
        self._over = asyncio.Event()
        """The connection is lost, or is to be given up."""
        self._link: asyncio.Future[Client | ToolUnavailable] | None = None
        """Pending while we connect."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._link = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._keep(self._link), name=f"MCP server {self.name}")
        try:
            yield
        finally:
            self._stopping = True
            self._over.set()
            _, left = await asyncio.wait([task], timeout=_STOP_S)
            if left:
                _log.warning("the MCP server %s does not let go", self.name)
                task.cancel()
                await asyncio.wait([task], timeout=_STOP_S)

    async def tools(self) -> Sequence[McpTool]:
        """What it offers, or offered when it was last there. Raises ToolUnavailable."""
        if self._tools is None:
            await self._client()
        return self._tools or ()

    async def call(self, tool: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Cancelling cancels the request at the server too. Raises CallFailed."""
        client = await self._client()
        try:
            return await client.call_tool(tool, arguments)
        except MCPError as error:
            if error.code == types.CONNECTION_CLOSED or error.message == _SESSION_LOST:
                self._give_up(client)
                raise ToolUnavailable(f"The MCP server {self.name} went away during the call.") from None
            raise CallFailed(f"The MCP server {self.name} refused the call: {self._clean(error)}") from None
        except (RuntimeError, ValidationError) as error:  # how the library says that a result breaks the protocol or its schema
            raise ToolBroken(f"The MCP server {self.name} gave an answer that it did not promise: {self._clean(error)}") from None

    def _give_up(self, client: Client) -> None:
        """This connection is over. There may be another one already."""
        if self._link is not None and self._link.done() and self._link.result() is client:
            self._over.set()

    async def _client(self) -> Client:
        """The connection. Waits while it is being made; raises ToolUnavailable where it cannot be had."""
        if self._link is None:
            raise ToolUnavailable(f"The MCP server {self.name} is not started.")
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                link = await asyncio.shield(self._link)
        except TimeoutError:
            raise ToolUnavailable(f"The MCP server {self.name} is not ready yet.") from None
        if isinstance(link, ToolUnavailable):
            raise ToolUnavailable(link.message)
        return link

    async def _keep(self, link: asyncio.Future[Client | ToolUnavailable]) -> None:
        """Connect, and connect again, with growing pauses as long as no connection lasts."""
        loop = asyncio.get_running_loop()
        delay_s = _FIRST_DELAY_S
        while not self._stopping:
            self._over.clear()
            why = "it closed the connection"
            try:
                async with AsyncExitStack() as stack:
                    async with asyncio.timeout(self._config.connect_timeout_s):
                        client = await stack.enter_async_context(await self._connection(stack))
                        self._tools = await self._listed(client)
                    _log.info("the MCP server %s offers %d tools", self.name, len(self._tools))
                    link.set_result(client)
                    connected_at = loop.time()
                    try:
                        await self._over.wait()
                    finally:
                        self._link = link = loop.create_future()
                        if loop.time() - connected_at >= _STEADY_S:
                            delay_s = _FIRST_DELAY_S
            except TimeoutError:
                why = f"it was not ready after {self._config.connect_timeout_s:g} s"
            except Exception as error:  # noqa: BLE001 - a server's trouble, whatever it is, ends here
                why = self._clean(error)
            if self._stopping:
                break
            _log.warning("the MCP server %s is away: %s", self.name, why)
            link.set_result(ToolUnavailable(f"The MCP server {self.name} is away: {why}"))
            await self._pause(delay_s)
            delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
            self._link = link = loop.create_future()
        if not link.done():
            link.set_result(ToolUnavailable(f"The MCP server {self.name} was stopped."))

    async def _pause(self, seconds: float) -> None:
        self._over.clear()
        if self._stopping:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return

    async def _connection(self, stack: AsyncExitStack) -> Client:
        """Not yet entered. Secrets leave their wrapping here."""
        mcp = self._config.mcp
        if isinstance(mcp, StdioServer):
            return Client(self._program(mcp, stack), client_info=_WHO, cache=None)
        headers = {name: value.get_secret_value() for name, value in mcp.headers.items()}
        timeout = httpx2.Timeout(self._config.connect_timeout_s, read=None)  # calls have their own limits
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout))
        return Client(streamable_http_client(mcp.url, http_client=http), client_info=_WHO, cache=None)

    def _program(self, mcp: StdioServer, stack: AsyncExitStack) -> Transport:
        program, *arguments = mcp.command
        env = {name: value.get_secret_value() for name, value in mcp.env.items()}
        parameters = StdioServerParameters(command=program, args=arguments, env=env, cwd=mcp.cwd)
        errors = stack.enter_context((mcp.stderr or Path(os.devnull)).open("a", encoding="utf-8"))
        return watched(stdio_client(parameters, errors), self._over)

    async def _listed(self, client: Client) -> Sequence[McpTool]:
        """Its tools; those that nobody could call are left out, and the log says why."""
        tools: dict[str, McpTool] = {}
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            page = await client.list_tools(cursor=cursor)
            for listed in page.tools:
                try:
                    tool = McpTool(self.name, listed, self._config, self.call)
                except ToolBroken as error:
                    _log.warning("the tool %s of the MCP server %s is left out: %s", listed.name, self.name, self._clean(error))
                else:
                    tools.setdefault(tool.name, tool)
            cursor = page.next_cursor
            if cursor is None:
                break
        return list(tools.values())

    def _clean(self, error: BaseException) -> str:
        """What went wrong in one line, without secrets. Groups are how the library wraps what one of its tasks raised."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        text = " ".join(str(error).split()) or type(error).__name__
        return self._redactor.text(text)[:_SAID]
