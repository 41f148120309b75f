"""What `tools.<name>` of the configuration says. Validation only; `registry.py` makes the tools."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    HttpUrl,
    PositiveFloat,
    SecretStr,
    StringConstraints,
    Tag,
    TypeAdapter,
)

_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)
_KIB = 1024

BETWEEN = "__"
"""Stands between a server's name and its tool's."""


def _url(value: str) -> str:
    """Checked like a URL but kept as written."""
    if _HTTP_URL.validate_python(value).username:
        raise ValueError("should have no credentials in it; put them into headers")
    return value


class ToolModel(BaseModel):
    """What all parts share: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ToolEntry(ToolModel):
    timeout_s: PositiveFloat | None = Field(default=None, description="The longest a call may take. None: as the agent says.")
    max_result_bytes: ByteSize = Field(
        default=ByteSize(64 * _KIB), gt=0, description="A longer result is cut off, and the model is told."
    )


class PythonTool(ToolEntry):
    """A function with the decorator `@headgate.tool`."""

    python: str = Field(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$",
        description="package.module:function; looked for in the folder that the server is started in, too.",
    )


class StdioServer(ToolModel):
    """A program that speaks MCP on its standard input and output. It sees `PATH`, `HOME` and the like, and `env`."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="The program and its arguments.")
    env: dict[str, SecretStr] = Field(default_factory=dict, description="More of its environment; the values do not print.")
    cwd: str | None = Field(default=None, description="The folder it is started in. None: the server's own.")
    stderr: Path | None = Field(
        default=None, description="A file for what it writes on its standard error. None: nowhere, as that may quote arguments."
    )


class HttpServer(ToolModel):
    """A server that speaks MCP over streamable HTTP."""

    url: Annotated[str, AfterValidator(_url)] = Field(description="Its endpoint, mostly .../mcp.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Sent with each request; the values do not print.")


def _transport(value: Any) -> str:
    return "http" if (isinstance(value, dict) and "url" in value) or isinstance(value, HttpServer) else "stdio"


class McpTools(ToolEntry):
    """All tools of an MCP server, each named `server__tool`."""

    mcp: Annotated[Annotated[StdioServer, Tag("stdio")] | Annotated[HttpServer, Tag("http")], Discriminator(_transport)]
    connect_timeout_s: PositiveFloat = Field(
        default=10.0, description="How long it may take to start and to list its tools, and how long an agent waits for that."
    )
    idempotent: bool | None = Field(
        default=None,
        description="Whether a call whose outcome was lost may be made again. None: as each tool says of itself; one that says "
        "nothing may.",
    )


def _kind(value: Any) -> str:
    return "mcp" if (isinstance(value, dict) and "mcp" in value) or isinstance(value, McpTools) else "python"


ToolConfig = Annotated[Annotated[PythonTool, Tag("python")] | Annotated[McpTools, Tag("mcp")], Discriminator(_kind)]

ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+(_[A-Za-z0-9-]+)*$", max_length=40)]
"""Without two underscores in a row: those stand between a server's name and its tool's."""


def secrets(configs: Mapping[str, ToolConfig]) -> list[str]:
    """Every secret that these configurations hold."""
    held: list[str] = []
    for config in configs.values():
        if isinstance(config, McpTools):
            slots = config.mcp.env if isinstance(config.mcp, StdioServer) else config.mcp.headers
            held += [value.get_secret_value() for value in slots.values()]
    return held


def known(name: str, configs: Mapping[str, ToolConfig]) -> bool:
    """Whether an agent can name this: a tool, a server, or one tool of a server, which nobody knows before it runs."""
    server, between, _ = name.partition(BETWEEN)
    return name in configs or (bool(between) and isinstance(configs.get(server), McpTools))
