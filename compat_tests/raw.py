"""A client of bytes: what exactly is sent, with no SDK's kindness in between. It reads as little as asked, and can hang up."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from tests.wire.eventstream import Read, read

CHAT = "/v1/chat/completions"
TIMEOUT_S = 20.0


def script(*lines: str) -> str:
    """A prompt that directs the scripted upstreams."""
    return "\n".join(("/script", *lines))


def ask(model: str, prompt: str, **fields: Any) -> dict[str, Any]:
    """A request's body."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """In lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def stream(self) -> bytes:
        """The body without keepalive comments, which depend on time and belong to the transport."""
        return self.body.replace(b": keepalive\n", b"")

    @property
    def frames(self) -> list[bytes]:
        """The stream's events, each with its blank line."""
        return frames(self.stream)

    @property
    def events(self) -> list[Read]:
        return read(self.body)

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON of all events but `[DONE]`."""
        return [json.loads(event.data) for event in self.events if event.data != "[DONE]"]

    @property
    def text(self) -> str:
        """The content of choice 0."""
        return "".join(
            choice["delta"].get("content") or ""
            for chunk in self.chunks
            for choice in chunk.get("choices", ())
            if choice["index"] == 0
        )

    @property
    def error(self) -> Any:
        """The error object, whether it is the body or the last event."""
        return (self.chunks[-1] if self.headers["content-type"].startswith("text/event-stream") else self.json)["error"]

    @property
    def run(self) -> str:
        return self.headers["x-workflow-id"]


def frames(stream: bytes) -> list[bytes]:
    *whole, rest = stream.split(b"\n\n")
    assert rest == b"", rest
    return [frame + b"\n\n" for frame in whole]


class Raw:
    def __init__(self, url: str, key: str | None = None) -> None:
        self._address = urlsplit(url).netloc
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def chat(self, model: str, prompt: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
        """A streamed answer, to its end; `stream=False` asks for a whole one."""
        return self.send("POST", CHAT, ask(model, prompt, **{"stream": True, **fields}), headers)

    def resume(self, run: str, after: int | None = None, event_id: str | None = None) -> Answer:
        """A run's stream from a place, to its end."""
        with self.resuming(run, after, event_id) as response:
            return _whole(response)

    @contextmanager
    def resuming(self, run: str, after: int | None = None, event_id: str | None = None) -> Iterator[http.client.HTTPResponse]:
        query = {"stream": "true"} | ({} if after is None else {"starting_after": str(after)})
        headers = {} if event_id is None else {"Last-Event-ID": event_id}
        with self.open("GET", f"{CHAT}/{run}?{urlencode(query)}", headers=headers) as response:
            yield response

    def retrieve(self, run: str) -> Answer:
        return self.send("GET", f"{CHAT}/{run}")

    def cancel(self, run: str) -> Answer:
        return self.send("POST", f"{CHAT}/{run}/cancel")

    def send(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, data: bytes | None = None
    ) -> Answer:
        with self.open(method, path, body, headers, data=data) as response:
            return _whole(response)

    @contextmanager
    def open(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, *, data: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """A response whose headers have come. Leaving hangs up, however much of it was read."""
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        sent = dict(self._headers)
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, path, data, sent | dict(headers or {}))
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    @contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection for several requests."""
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            yield connection
        finally:
            connection.close()


def _whole(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, headers_of(response), response.read())


def headers_of(response: http.client.HTTPResponse) -> Mapping[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def take_frames(response: http.client.HTTPResponse, count: int) -> list[bytes]:
    """The next `count` events of a live stream, as they arrive; keepalives between them are dropped."""
    taken: list[bytes] = []
    lines: list[bytes] = []
    while len(taken) < count:
        line = response.readline()
        assert line, "the stream ended early"
        if line == b"\n":
            taken.append(b"".join(lines) + line)
            lines = []
        elif not line.startswith(b":"):
            lines.append(line)
    return taken


def parts(stream: bytes, cut: int) -> tuple[int, Sequence[bytes]]:
    """How many whole events a client has that received `cut` bytes, and which."""
    whole = stream[: stream.rfind(b"\n\n", 0, cut) + 2] if b"\n\n" in stream[:cut] else b""
    return whole.count(b"\n\n"), frames(whole)
