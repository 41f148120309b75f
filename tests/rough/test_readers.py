"""P15: one run, a reader that stopped reading, a slow one, and twenty that are fast.

Five megabytes of answer, so that no kernel's buffers hide what is not read.
"""

from __future__ import annotations

import asyncio
import socket

import psutil

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, text_of
from tests.rough.conftest import Serve

WORD = "x" * 2000
SCRIPT = f"""rate 500/s; repeat 2500; say " {WORD}"; end"""
FAST = 20
STALL_S = 3.0
GROWTH_BYTES = 48 << 20


def stiff_socket(url: str, run_id: str) -> socket.socket:
    """A raw reader whose kernel takes little on its behalf, so that the server notices what it does not read."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect((host, int(port)))
    reader.sendall(f"GET /v1/chat/completions/{run_id}?stream=true HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    reader.setblocking(False)
    return reader


async def read_slowly(reader: socket.socket, bytes_per_s: float) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while b"data: [DONE]\n\n" not in received[-64:]:
        data = await loop.sock_recv(reader, 1 << 14)
        assert data, "it was cut off"
        received += data
        await asyncio.sleep(len(data) / bytes_per_s)
    return bytes(received)


def chunks_of(raw: bytes) -> list[str]:
    """The data of the events in a chunked HTTP response, whichever way it was cut."""
    _, _, body = raw.partition(b"\r\n\r\n")
    whole = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        whole += rest[:length]
        body = rest[length + 2 :] if length else b""
    return [line[6:].decode() for line in whole.split(b"\n") if line.startswith(b"data: ")]


async def test_slow_readers_cost_bounded_bytes_and_nobody_elses_time(
    serve: Serve, upstream: ScriptedServer, asking: Client
) -> None:
    streams = {"hold_s": 0.2, "keepalive_s": 1.0, "stall_timeout_s": STALL_S}
    server = await serve(streams=streams, log={"ring_bytes": "256KiB"})
    warm = asking.ask(server.url, "durable", f"""repeat 500; say " {WORD}"; end""")
    await warm.end()
    process = psutil.Process(server.pid)
    before = process.memory_info().rss
    fds = process.num_fds()

    asked = asking.ask(server.url, "durable", SCRIPT)
    await asked.said(1)
    frozen, slow = stiff_socket(server.url, asked.run_id), stiff_socket(server.url, asked.run_id)
    slowly = asyncio.create_task(read_slowly(slow, 1_000_000))
    fast = [asked, *(asking.resume(server.url, asked.run_id) for _ in range(FAST - 1))]
    peak = before
    finished = asyncio.gather(*(reading.end() for reading in fast), slowly)
    while not finished.done():
        peak = max(peak, process.memory_info().rss)
        await asyncio.wait([finished], timeout=0.1)
    await finished

    text = text_of(SCRIPT)
    for reading in fast:
        assert reading.done, reading
        assert reading.text == text
        assert reading.chunks == asked.chunks
    assert chunks_of(await slowly) == asked.chunks
    print(f"\nfast after {max(r.ended for r in fast) - asked.began:.1f} s, memory grew by {(peak - before) / 2**20:.1f} MiB")
    assert peak - before <= GROWTH_BYTES
    await asking.metric(server.url, "headgate_stalled_clients_total", lambda stalled: stalled == 1, within_s=3 * STALL_S)
    for reader in (frozen, slow):
        reader.close()
    await asking.metric(server.url, "headgate_active_streams", lambda streams: streams == 0)
    metrics = await asking.metrics(server.url)
    assert (metrics["headgate_gaps_total"], metrics["headgate_internal_errors_total"]) == (0, 0)
    assert process.num_fds() <= fds + 3
    assert len(upstream.witness.calls) == 2
    assert server.errors() == []
