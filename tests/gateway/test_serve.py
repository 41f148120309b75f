"""The life of a serving process, from outside: it starts with its own backends, answers, drains on SIGTERM, and ends with 0."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

CONFIG = """
server: {port: 0, drain_s: 0.5}
upstreams: {demo: {kind: scripted}}
models:
  durable: {plan: {agent: {upstream: demo}}}
  inline: {plan: {agent: {upstream: demo}}, durability: none}
"""


async def last_event(http: aiohttp.ClientSession, url: str, model: str, begun: asyncio.Event) -> str:
    script = "/script\nsay 1 word; wait 60s"
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": script}]}
    last = ""
    async with http.post(f"{url}/v1/chat/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                last = line.decode().removeprefix("data: ").strip()
                begun.set()
    return last


@pytest.mark.local
async def test_sigterm_ends_every_stream_honestly_and_the_process_cleanly(tmp_path: Path) -> None:
    """Both streams would go on for a minute. Neither ends as if its answer were whole."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "headgate", "serve", "--config", "config.yaml", "--data", "data"]
    server = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            url = next(word for word in (await server.stdout.readline()).decode().split() if word.startswith("http://")).rstrip(
                "."
            )
            begun = [asyncio.Event(), asyncio.Event()]
            reading = [
                asyncio.create_task(last_event(http, url, model, event))
                for model, event in zip(("durable", "inline"), begun, strict=True)
            ]
            await asyncio.gather(*(event.wait() for event in begun))
            server.send_signal(signal.SIGTERM)
            codes = [json.loads(last)["error"]["code"] for last in await asyncio.gather(*reading)]
            assert codes == ["draining", "draining"]
            assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


NOTICED = """
server: {port: 0, drain_notice_s: 3, drain_s: 1}
upstreams: {demo: {kind: scripted}}
models:
  inline: {plan: {agent: {upstream: demo}}, durability: none}
"""


@pytest.mark.local
async def test_sigterm_is_noticed_by_load_balancers_before_anything_is_refused(tmp_path: Path) -> None:
    """P19: readiness fails first. A request that a balancer sends meanwhile is still served."""
    (tmp_path / "config.yaml").write_text(NOTICED)
    command = [sys.executable, "-m", "headgate", "serve", "--config", "config.yaml", "--data", "data"]
    server = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            line = (await server.stdout.readline()).decode()
            url = next(word for word in line.split() if word.startswith("http://")).rstrip(".,")
            server.send_signal(signal.SIGTERM)
            state = ""
            while state != "draining":
                async with http.get(f"{url}/readiness") as answer:
                    state = (await answer.json())["status"]
            body = {"model": "inline", "messages": [{"role": "user", "content": "/script\nsay 2 words"}]}
            async with http.post(f"{url}/v1/chat/completions", json=body) as answer:
                assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await server.wait() == 0
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()
