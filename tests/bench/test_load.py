"""The load generator counts what the upstream sends, and notices what it did not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
_COUNTS = ("done", "incomplete", "errors", "chunks")


@pytest.fixture(scope="module")
def upstream() -> Iterator[tuple[str, int]]:
    """Its address and process id."""
    command = [sys.executable, "-m", "bench.upstream", "--port", "0"]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
        process.terminate()


def load(url: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", "--url", url, *arguments]
    report: dict[str, Any] = json.loads(subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return report


@pytest.mark.parametrize("more", [(), ("--usage",), ("--close",)])
def test_every_chunk_is_counted_once(upstream: tuple[str, int], more: tuple[str, ...]) -> None:
    url, pid = upstream
    report = load(f"{url}/chat/completions", "--model", "any/mock-301-0", "-c", "3", "-n", "10", "--pid", str(pid), *more)
    assert {key: report[key] for key in _COUNTS} == {"done": 10, "incomplete": 0, "errors": 0, "chunks": 3010}
    assert report["processes"].keys() == {"python"}
    assert report["rss_peak_mb"] >= report["rss_mb"] > 1


def test_ages_and_times_are_those_of_the_script(upstream: tuple[str, int]) -> None:
    """Five chunks, 20 ms apart: the first after 20 ms, the last after 100, and each fresh on arrival."""
    report = load(f"{upstream[0]}/chat/completions", "--model", "mock-5-20", "-c", "1", "-n", "2")
    assert 18 <= report["ttft_ms"]["p50"] < 60
    assert 95 <= report["total_ms"]["p50"] < 200  # timers count whole milliseconds
    assert 0 < report["chunk_age_ms"]["p50"] < 20


def test_the_hold_comes_after_the_first_chunk(upstream: tuple[str, int]) -> None:
    report = load(f"{upstream[0]}/chat/completions", "--model", "mock-100-0-300", "-c", "2", "-n", "2")
    assert report["chunks"] == 200
    assert report["ttft_ms"]["max"] < 150
    assert report["total_ms"]["p50"] >= 300
    assert report["flow_chunks_per_s"] > 2 * report["chunks_per_s"]


def test_a_refusal_is_not_a_completion(upstream: tuple[str, int]) -> None:
    refused = load(f"{upstream[0]}/chat/completions", "--model", "unknown", "-c", "2", "-n", "4")
    assert {key: refused[key] for key in _COUNTS} == {"done": 0, "incomplete": 4, "errors": 0, "chunks": 0}
    assert refused["first_bad"].startswith("HTTP/1.1 404 Not Found\r\n")


def test_a_server_that_is_not_there_is_an_error() -> None:
    absent = load("http://127.0.0.1:1/v1/chat/completions", "-c", "2", "-n", "2")
    assert {key: absent[key] for key in _COUNTS} == {"done": 0, "incomplete": 0, "errors": 2, "chunks": 0}


async def test_headers_that_end_in_a_zero_are_not_the_end_of_a_stream() -> None:
    """A run's id in the last header, sent ahead of the body, ended with 0: every sixteenth stream was counted as broken."""
    data = b"data: t=1234567890 \n\ndata: [DONE]\n\n"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
    pieces = [b"HTTP/1.1 200 OK\r\nX-Workflow-ID: task-0\r\n\r\n", body]

    answered = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.05)  # so that they arrive one by one
        writer.close()
        await writer.wait_closed()
        answered.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        report = await asyncio.to_thread(load, url, "-c", "1", "-n", "1")
        await answered.wait()
    assert {key: report[key] for key in _COUNTS} == {"done": 1, "incomplete": 0, "errors": 0, "chunks": 1}
