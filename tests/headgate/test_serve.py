"""`headgate serve` as a person meets it: what it prints can be pasted, and how it refuses and stops."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.settings import Settings
from headgate.serve import admitting

ANSWER = "No model was asked"


@asynccontextmanager
async def served(data: Path, environ: dict[str, str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A server on a free port, and all that it printed on standard output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "serve", "--port", "0", "--data", str(data)), stdout=-1, stderr=-3, env=environ
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            printed = await process.stdout.readuntil(b"headgate submit")
            yield process, (printed + await process.stdout.readline()).decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def examples(printed: str) -> list[str]:
    """The commands in what was printed: each begins a paragraph."""
    _, *paragraphs = printed.strip().split("\n\n")
    return [paragraph for paragraph in paragraphs if not paragraph.startswith("export")]


async def pasted(command: str, environ: dict[str, str]) -> str:
    shell = await asyncio.create_subprocess_exec("bash", "-euc", command, stdout=-1, stderr=-3, env=environ)
    out, _ = await shell.communicate()
    assert shell.returncode == 0, command
    return out.decode()


@pytest.mark.local
@pytest.mark.parametrize("auth", ["off", "keys"])
async def test_the_three_examples_can_be_pasted(tmp_path: Path, auth: str) -> None:
    server = {} if auth == "off" else {"HEADGATE_AUTH__MODE": "keys", "HEADGATE_AUTH__KEYS": "[{key: s3cret, name: me}]"}
    client = {"PATH": "/usr/bin:/bin"} | ({} if auth == "off" else {"HEADGATE_API_KEY": "s3cret"})
    async with served(tmp_path, server) as (process, printed):
        assert re.match(r"Headgate listens on http://127\.0\.0\.1:\d+\. Try, in another terminal:\n\n", printed)
        curl, python, headgate = examples(printed)
        assert (await pasted(curl, client)).endswith("data: [DONE]\n\n")
        assert ANSWER in await pasted(python, client)
        assert ANSWER in await pasted(headgate, client)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_mistake_in_the_configuration_stops_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("server: {prot: 1}\n", "utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "serve", "--config", str(file), "--host", "0.0.0.0"), stdout=-1, stderr=-1
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err.decode() == (
        "headgate: the configuration is not valid:\n"
        f"  {file}: server: unknown key 'prot' (did you mean 'port'?)\n"
    )  # fmt: skip


async def test_a_port_that_is_taken_is_told_before_anything_is_started(tmp_path: Path) -> None:
    """Databases were started first, and then came a line of errno."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headgate", "serve", "--port", str(port), "--data", str(tmp_path / "data")),
            stdout=-1,
            stderr=-1,
        )
        out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode() == (
        f"headgate: Cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Choose another port with --port (0 is a free one).\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.local
async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """It used to end as a segmentation fault."""
    async with served(tmp_path, {}) as (process, printed):
        url = printed.split()[3].rstrip(".")
        body = {"model": "headgate-demo", "stream": True, "messages": [{"role": "user", "content": "/script say 1 word; hang"}]}
        async with aiohttp.ClientSession() as http, http.post(f"{url}/v1/chat/completions", json=body) as answer:
            await answer.content.readline()
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(10):
                while (await http.get(f"{url}/readiness")).status == 200:  # until it has taken notice
                    pass
                process.send_signal(signal.SIGINT)
                assert await process.wait() == -signal.SIGINT


@pytest.mark.parametrize(("sections", "said"), [
    ({}, "auth.mode is off: every program on this machine may do everything, at every door."),
    ({"role": "gateway"}, "auth.mode is off: every program on this machine may do everything, at every door."),
    ({"role": "orchestrator"}, None),  # whose one door asks for signatures
    ({"auth": {"mode": "keys"}}, "The configuration lists no keys: `headgate keys create` makes one, now or later."),
    ({"auth": {"mode": "keys", "keys": [{"key": "k", "name": "a"}]}}, None),
    ({"auth": {"mode": "keys", "jwt": {"issuer": "i", "audience": "a", "secret": "x" * 32}}}, None),
])  # fmt: skip
def test_who_may_come_in_is_said_at_the_start(sections: dict[str, Any], said: str | None) -> None:
    assert admitting(Settings.model_validate({"orchestrator": {"secret": "x" * 16}, **sections})) == said
