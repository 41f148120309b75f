"""A model server that costs next to nothing, so that it is never what is being measured.

The model's name is its script: `mock-<chunks>-<interval_ms>[-<hold_ms>[-<linger_ms>]]`. `mock-200-0` sends 200 chunks as fast
as they are read, `mock-100-20` one every 20 ms, `mock-4000-0-3000` one, and the others after three seconds; `mock-10-0-0-5000`
has said all after ten chunks and ends five seconds later. What stands before a `/` is ignored.
Every chunk carries the monotonic time at which it was written, `t=<ns> `, from which `bench.load` computes its age.

Speaks just enough HTTP/1.1 for well-behaved clients: requests with a Content-Length, one at a time per connection.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from typing import Any, NamedTuple, cast

import uvloop

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
_CHUNK = '{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"%s","choices":[%s]%s}'
_CHOICE = '{"index":0,"delta":%s,"finish_reason":%s}'
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_MODEL = re.compile(r"mock-(\d+)-([\d.]+)(?:-([\d.]+))?(?:-([\d.]+))?")
_PROMPT_TOKENS = 10
_PER_TURN = 8
"""Chunks of one burst before other connections have their turn."""


class Script(NamedTuple):
    name: str
    chunks: int
    interval_s: float
    hold_s: float
    linger_s: float

    @classmethod
    def of(cls, model: str) -> Script | None:
        match = _MODEL.fullmatch(model.rsplit("/", 1)[-1])
        if match is None:
            return None
        interval_ms, hold_ms, linger_ms = (float(ms or 0) for ms in match.groups()[1:])
        return cls(match[0], int(match[1]), interval_ms / 1000, hold_ms / 1000, linger_ms / 1000)

    def usage(self) -> dict[str, int]:
        counts = {"prompt_tokens": _PROMPT_TOKENS, "completion_tokens": self.chunks}
        return counts | {"total_tokens": _PROMPT_TOKENS + self.chunks}


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._writable = asyncio.Event()
        self._writable.set()
        self._answer: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if not end or len(rest) < size:
            return
        self._received = rest[size:]
        if head.startswith(b"POST"):
            self._complete(json.loads(rest[:size]))
        else:
            model = {"id": "mock-100-0", "object": "model", "created": 1700000000, "owned_by": "mock"}
            self._send_json({"object": "list", "data": [model]})

    def _complete(self, request: dict[str, Any]) -> None:
        script = Script.of(request["model"])
        if script is None:
            self._send_json({"error": {"message": "no such script", "code": "model_not_found"}}, b"404 Not Found")
        elif request.get("stream"):
            with_usage = (request.get("stream_options") or {}).get("include_usage", False)
            self._answer = asyncio.get_running_loop().create_task(self._stream(script, with_usage))
        else:
            self._send_completion(script)

    def _send_completion(self, script: Script) -> None:
        message = {"role": "assistant", "content": "".join(_stamp() for _ in range(script.chunks))}
        completion = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 1700000000, "model": script.name}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send_json(completion | {"choices": [choice], "usage": script.usage()})

    def _send_json(self, value: object, status: bytes = b"200 OK") -> None:
        body = json.dumps(value).encode()
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)

    async def _stream(self, script: Script, with_usage: bool) -> None:
        write = self._transport.write
        write(_HEAD + _chunk(script, '{"role":"assistant","content":""}'))
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in range(script.chunks):
            if number == 1 and script.hold_s:
                await asyncio.sleep(script.hold_s)
            if script.interval_s:
                due += script.interval_s
                await asyncio.sleep(max(0.0, due - loop.time()))
            elif not self._writable.is_set():
                await self._writable.wait()
            elif number % _PER_TURN == _PER_TURN - 1:
                await asyncio.sleep(0)
            write(_chunk(script, f'{{"content":"{_stamp()}"}}'))
        if script.linger_s:
            await asyncio.sleep(script.linger_s)
        write(_chunk(script, "{}", finish='"stop"'))
        if with_usage:
            write(_frame(_CHUNK % (script.name, "", f',"usage":{json.dumps(script.usage())}')))
        write(_frame("[DONE]") + b"0\r\n\r\n")


def _stamp() -> str:
    return f"t={time.monotonic_ns()} "


def _chunk(script: Script, delta: str, finish: str = "null") -> bytes:
    return _frame(_CHUNK % (script.name, _CHOICE % (delta, finish), ""))


def _frame(data: str) -> bytes:
    event = b"data: %s\n\n" % data.encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


async def main(port: int) -> None:
    """Serve on loopback and say where, for whoever asked for port 0."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=8192)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9100)
    uvloop.run(main(parser.parse_args().port))
