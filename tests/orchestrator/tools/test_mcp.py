"""Real MCP servers, as child processes and over HTTP: what they offer, and what becomes of calls when they misbehave."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import TypeAdapter

from orchestrator.tools.config import ToolConfig
from orchestrator.tools.mcp_tool import name_of
from orchestrator.tools.registry import Tools
from orchestrator.tools.tool import CallFailed, CallTimedOut, InvalidArguments, ToolBroken, ToolUnavailable
from orchestrator.tools.toolbox import Toolbox

SERVER = str(Path(__file__).with_name("server.py"))
CONFIG: TypeAdapter[ToolConfig] = TypeAdapter(ToolConfig)
PROGRAM = [sys.executable, SERVER]
PATIENCE_S = 20.0

SECRET = "s3cr3t-token"
in_one_loop = pytest.mark.asyncio(loop_scope="module")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@asynccontextmanager
async def over_http(port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*PROGRAM, str(port), env={})
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def tools_of(mcp: dict[str, Any], **more: Any) -> AsyncIterator[Tools]:
    tools = Tools({"tests": CONFIG.validate_python({"mcp": mcp, **more})})
    async with tools.running():
        yield tools


@pytest_asyncio.fixture(params=["stdio", "http"], scope="module", loop_scope="module")
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Tools]:
    """One server of each kind for all tests that leave it as it is: starting one takes half a second."""
    if request.param == "stdio":
        async with tools_of({"command": PROGRAM, "env": {"TOKEN": SECRET}}) as tools:
            yield tools
        return
    port = free_port()
    async with over_http(port), tools_of({"url": f"http://127.0.0.1:{port}/mcp", "headers": {"x-token": SECRET}}) as tools:
        await until_offered(tools)
        yield tools


async def until_offered(tools: Tools, timeout_s: float = 5.0) -> Toolbox:
    """Once the server is there."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await tools.offer(["tests"], timeout_s)
            except ToolUnavailable:
                await asyncio.sleep(0.05)


async def until_it_adds(toolbox: Toolbox) -> str:
    """What it answers once it is back."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return (await toolbox.call("tests__add", {"a": 1, "b": 2})).text
            except ToolUnavailable:
                await asyncio.sleep(0.05)


@in_one_loop
async def test_a_server_offers_its_tools_and_is_called(shared: Tools) -> None:
    toolbox = await shared.offer(["tests"], 5.0)
    names = [tool["function"]["name"] for tool in toolbox.offered]
    assert names[:2] == ["tests__add", name_of("tests", "read.file")]
    assert "tests__nonsense" not in names
    assert toolbox.offered[0]["function"] == {
        "name": "tests__add",
        "description": "The tool add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    }
    assert (await toolbox.call("tests__add", {"a": 1, "b": 2})).text == "3"
    assert (await toolbox.call(name_of("tests", "read.file"), {"path": "x"})).text == "the contents of x"
    assert (await toolbox.call("tests__picture", {})).text == "See:\n[image: image/png, 6 bytes]"
    with pytest.raises(InvalidArguments):
        toolbox.find("tests__add").schema.check({"a": 1, "b": "2"})
    assert not toolbox.find("tests__dies").idempotent
    assert toolbox.find("tests__add").idempotent


@in_one_loop
async def test_one_tool_of_a_server_can_be_listed(shared: Tools) -> None:
    toolbox = await shared.offer(["tests__add"], 5.0)
    assert [tool["function"]["name"] for tool in toolbox.offered] == ["tests__add"]
    with pytest.raises(ToolUnavailable, match="has no tool 'tests__subtract'"):
        await shared.offer(["tests__subtract"], 5.0)
    with pytest.raises(ToolUnavailable, match="'other' is not configured any more"):
        await shared.offer(["other"], 5.0)


@in_one_loop
async def test_secrets_reach_the_server_and_nothing_else_of_ours_does(shared: Tools) -> None:
    toolbox = await shared.offer(["tests"], 5.0)
    answers = [
        (await toolbox.call("tests__headers", {})).text,
        (await toolbox.call("tests__environment", {"name": "TOKEN"})).text,
    ]
    assert SECRET in answers
    assert shared.redactor.text(f"it is {SECRET}") == "it is [redacted]"
    assert (await toolbox.call("tests__environment", {"name": "PYTEST_CURRENT_TEST"})).text == "not set"


@in_one_loop
async def test_what_a_server_answers_badly_is_the_end_of_the_call_only(shared: Tools) -> None:
    toolbox = await shared.offer(["tests"], 5.0)
    failed = await toolbox.call("tests__fails", {})
    assert (failed.text, failed.success) == ("there is no such thing", False)
    with pytest.raises(ToolBroken, match="gave an answer that it did not promise"):
        await toolbox.call("tests__lies", {})
    huge = (await toolbox.call("tests__huge", {})).text
    assert huge[65_536:] == "\n[Cut off: the result has 10000000 bytes, of which these are the first 65536.]"
    assert (await toolbox.call("tests__add", {"a": 1, "b": 2})).text == "3"


@in_one_loop
async def test_a_call_that_hangs_is_cancelled_at_the_server(shared: Tools, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    toolbox = await shared.offer(["tests"], 0.3)
    with pytest.raises(CallTimedOut):
        await toolbox.call("tests__hangs", {"marker": str(marker)})
    async with asyncio.timeout(PATIENCE_S):
        while not marker.exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    assert (await toolbox.call("tests__add", {"a": 1, "b": 2})).text == "3"


async def test_a_server_that_is_killed_in_a_call_is_started_again() -> None:
    async with tools_of({"command": PROGRAM}) as tools:
        toolbox = await tools.offer(["tests"], 5.0)
        with pytest.raises(ToolUnavailable, match="went away during the call"):
            await toolbox.call("tests__dies", {})
        assert await until_it_adds(toolbox) == "3"


async def test_a_server_that_dies_while_nobody_calls_it_is_started_again() -> None:
    """Its output ends, and that is noticed at once rather than by the next call."""
    async with tools_of({"command": PROGRAM}) as tools:
        toolbox = await tools.offer(["tests"], 5.0)
        killing = asyncio.create_task(toolbox.call("tests__dies", {}))
        killing.cancel()
        await asyncio.wait([killing])
        with pytest.raises(CallFailed):
            await toolbox.call("tests__dies", {})
        assert await until_it_adds(toolbox) == "3"


async def test_a_server_that_comes_back_is_called_again() -> None:
    port = free_port()
    async with tools_of({"url": f"http://127.0.0.1:{port}/mcp"}) as tools:
        async with over_http(port):
            toolbox = await until_offered(tools)
        with pytest.raises(ToolUnavailable):
            await toolbox.call("tests__add", {"a": 1, "b": 2})
        assert await tools.offer(["tests"], 5.0), "what it offered the last time is offered while it is away"
        async with over_http(port):
            assert await until_it_adds(toolbox) == "3"


@pytest.mark.parametrize(
    ("mcp", "problem"),
    [
        ({"command": ["/no/such/program"]}, "is away: .*No such file or directory"),
        ({"command": [sys.executable, "-c", "print('hello')"]}, "is away: "),
        ({"command": ["sleep", "30"]}, "is not ready yet|was not ready after"),
        ({"url": "http://127.0.0.1:1/mcp"}, "is away: "),
    ],
)
async def test_a_server_that_cannot_be_had_says_why(mcp: dict[str, Any], problem: str) -> None:
    async with tools_of(mcp, connect_timeout_s=0.5) as tools:
        with pytest.raises(ToolUnavailable, match=problem):
            await tools.offer(["tests"], 5.0)


async def test_what_a_program_says_on_its_standard_error_goes_where_it_may(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Headgate's own log promises not to quote what is asked; a server that logs its calls would."""
    file = tmp_path / "stderr.log"
    command = [sys.executable, "-c", "import sys; print('asked for a secret', file=sys.stderr)"]
    for stderr in ({}, {"stderr": str(file)}):
        async with tools_of({"command": command, **stderr}, connect_timeout_s=5) as tools:
            with pytest.raises(ToolUnavailable):
                await tools.offer(["tests"], 5.0)
    assert "asked" not in capfd.readouterr().err
    assert "asked for a secret\n" in file.read_text()


@pytest.mark.parametrize("tool", ["read.file", "a b/c", "x" * 80, "名前"])
def test_names_fit_what_openai_allows_and_stay_apart(tool: str) -> None:
    name = name_of("server", tool)
    assert len(name) <= 64
    assert name.isascii()
    assert name.replace("_", "").replace("-", "").isalnum()
    assert name != name_of("server", tool.replace(".", "_") + "_")
