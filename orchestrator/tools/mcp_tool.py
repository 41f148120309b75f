"""One tool of an MCP server: its name as models see it, its schema, and its answers as text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

import mcp_types as types
import pydantic_core

from orchestrator.tools.config import BETWEEN, McpTools
from orchestrator.tools.schema import Schema
from orchestrator.tools.tool import Observation, limited

_LONGEST = 64

Call = Callable[[str, dict[str, Any]], Awaitable[types.CallToolResult]]


class McpTool:
    """Implements `tool.Tool`. Raises ToolBroken when the listed schema is none."""

    def __init__(self, server: str, listed: types.Tool, config: McpTools, call: Call) -> None:
        self.name = name_of(server, listed.name)
        self.description = listed.description or listed.title or ""
        self.schema = Schema(listed.input_schema)
        self.idempotent = _idempotent(listed.annotations) if config.idempotent is None else config.idempotent
        self.timeout_s = config.timeout_s
        self.max_result_bytes = int(config.max_result_bytes)
        self._listed_name = listed.name
        self._call = call

    async def call(self, arguments: dict[str, Any]) -> Observation:
        result = await self._call(self._listed_name, arguments)
        return Observation(limited(text_of(result), self.max_result_bytes), success=not result.is_error)


def name_of(server: str, tool: str) -> str:
    """`server__tool` within what OpenAI allows. A name that has to be changed keeps a trace of what it was."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", tool)
    name = f"{server}{BETWEEN}{plain}"
    if plain == tool and len(name) <= _LONGEST:
        return name
    trace = hashlib.sha256(tool.encode("utf-8", "replace")).hexdigest()[:6]
    return f"{name[: _LONGEST - 7]}_{trace}"


def text_of(result: types.CallToolResult) -> str:
    """What a model can read of a result; what it cannot is named."""
    parts = [_text(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts = [pydantic_core.to_json(result.structured_content).decode()]
    return "\n".join(parts)


def _text(block: types.ContentBlock) -> str:
    match block:
        case types.TextContent():
            return block.text
        case types.EmbeddedResource(resource=types.TextResourceContents() as resource):
            return resource.text
        case types.ImageContent() | types.AudioContent():
            return f"[{block.type}: {block.mime_type}, {len(block.data) * 3 // 4} bytes]"
        case types.ResourceLink():
            return f"[resource: {block.uri}]"
        case _:
            return f"[{block.type}]"


def _idempotent(says: types.ToolAnnotations | None) -> bool:
    """As the tool says of itself. What only reads can be repeated; one that says nothing may be."""
    if says is None or says.read_only_hint:
        return True
    return says.idempotent_hint is not False
