"""A model server that tells everybody what it was asked with: in its errors, the key and the other secrets of the request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "answer-canary-7f3a"

_CHUNK = {"choices": [{"index": 0, "delta": {"content": ANSWER}, "finish_reason": None}]}
_END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(200, b'{"object":"list","data":[]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = str(body["messages"][-1]["content"])
        told = f"I was asked by {dict(self.headers)} at {self.headers['Host']} for {asked}"
        about = {"type": asked, "code": self.headers["Authorization"], "param": self.headers["X-Extra"]}
        error = {"error": {"message": told, **about}}
        _, _, how = asked.partition(" how: ")
        if how.isdigit():
            self._answer(int(how), json.dumps(error).encode())
        elif how == "inside":
            self._stream(_CHUNK, error)
        elif how == "text":
            self._answer(500, told.encode(), "text/plain")
        else:
            self._stream(_CHUNK, _END)

    def _stream(self, *chunks: object) -> None:
        frames = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        self._answer(200, "".join([*frames, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _answer(self, status: int, body: bytes, type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def echoing() -> Iterator[str]:
    """Its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
