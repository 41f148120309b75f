"""What one agent may call: its tools by name, as the upstream is told of them, each call within its limits.

A tool that ignores its cancellation is abandoned: whoever called it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import HeadgateError
from orchestrator.tools.tool import CallFailed, CallTimedOut, Observation, Tool, ToolUnavailable

_log = logging.getLogger(__name__)

_GRACE_S = 0.5
"""How long a tool may take to stop when it is told to."""


class Toolbox:
    def __init__(self, tools: Sequence[Tool] = (), timeout_s: float = 30.0) -> None:
        self._tools = {tool.name: tool for tool in tools}
        self._timeout_s = timeout_s

    def __bool__(self) -> bool:
        return bool(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    @property
    def offered(self) -> list[dict[str, Any]]:
        """As `tools` of a request."""
        return [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.schema.parameters},
            }
            for tool in self._tools.values()
        ]

    def find(self, name: str) -> Tool:
        """Raises ToolUnavailable."""
        if (tool := self._tools.get(name)) is None:
            raise ToolUnavailable(f"There is no tool of this name. There are: {', '.join(self._tools)}.")
        return tool

    async def call(self, name: str, arguments: dict[str, Any]) -> Observation:
        """`arguments` fit the tool's schema. Raises CallFailed."""
        tool = self.find(name)
        limit_s = self._timeout_s if tool.timeout_s is None else tool.timeout_s
        work = asyncio.ensure_future(tool.call(arguments))
        try:
            done, _ = await asyncio.wait([work], timeout=limit_s)
        finally:
            if not work.done():
                await _give_up(name, work)
        if not done:
            raise CallTimedOut(f"The tool did not answer within {limit_s:g} s, and the call was given up.")
        if work.cancelled():
            raise CallFailed("The tool cancelled itself.")
        try:
            return work.result()
        except HeadgateError:
            raise
        except Exception as error:  # a tool is the edge of what is ours: whatever it raises ends this call only
            _log.exception("a call of the tool %s failed", name)
            raise CallFailed(f"The tool failed ({type(error).__name__}).") from error


async def _give_up(name: str, work: asyncio.Future[Observation]) -> None:
    work.cancel()
    _, left = await asyncio.wait([work], timeout=_GRACE_S)
    if left:
        _log.warning("a call of the tool %s goes on although it was cancelled; nobody waits for it", name)
        work.add_done_callback(_forget)
    elif not work.cancelled():
        work.exception()


def _forget(work: asyncio.Future[Observation]) -> None:
    """Take notice of how it ended, so that nobody complains that it was not."""
    if not work.cancelled():
        work.exception()
