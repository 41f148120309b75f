"""The chat door from the client's side: ask, list models, and read a run's answer as one stream of chunks.

A stream survives lost connections. Chunks are a pure function of the run's log, so the number of those received is a position,
and after a loss the same run is asked for what follows it: nothing is missing, nothing comes twice. It ends as the run ended,
with `[DONE]` or with an error; a body that just stops is a lost connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec

from gateway.wire.sse_decoder import Decoder

SILENCE_S = 120.0
"""A server that sends nothing for so long is gone: it would have sent keepalives."""

BACKOFF_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses between attempts to get a stream back. Progress starts them over; after the last one the stream is given up."""

_PASSING = frozenset({"draining", "backend_unavailable", "log_unavailable"})
"""Errors that speak of the server and not of the run: another attempt may find another replica, or the same one well again."""

Chunk = dict[str, Any]


class ServerGone(Exception):
    """No connection to the server, or none that lasts."""


class Refused(Exception):
    """The server answered with an error, or the run ended with one."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code: str | None = error.get("code")
        self.message = str(error.get("message") or "The server gave no reason.")
        super().__init__(self.message)

    @property
    def passing(self) -> bool:
        return self.code in _PASSING


class Answer:
    """One run's stream. `run_id` is known once there is a response; `received` counts the chunks that are part of the log.

    `on_run` is told the run's id as soon as it is known, `on_loss` of each pause before another attempt.
    """

    def __init__(self, door: ChatDoor, question: Mapping[str, Any] | None, run_id: str | None, received: int) -> None:
        self.run_id = run_id
        self.received = received
        self.on_run: Callable[[str], None] = lambda _: None
        self.on_loss: Callable[[float], None] = lambda _: None
        self._door = door
        self._question = question
        self._connected = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """All chunks that follow, until the run's end. A question is asked once: a run is never started twice.

        Raises Refused when the run ends with an error, ServerGone when the connection does not come back.
        """
        pauses = iter(self._door.backoff_s)
        while True:
            before = self.received
            try:
                async with aclosing(self._connection()) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except Refused as error:
                if not error.passing or not self._connected:
                    raise
                lost: Exception = error
            except ServerGone as error:
                if not self._connected:
                    raise
                lost = error
            pauses = iter(self._door.backoff_s) if self.received > before else pauses
            if (pause := next(pauses, None)) is None:
                raise ServerGone(
                    f"The connection to {self._door.url} was lost and does not come back. "
                    f"`headgate stream {self.run_id}` reads the run once the server is there again."
                ) from lost
            self.on_loss(pause)
            await asyncio.sleep(pause)

    async def _connection(self) -> AsyncGenerator[Chunk, None]:
        """What one connection brings. Returns after `[DONE]`; raises when the body ends otherwise."""
        decoder = Decoder()
        async with self._response() as response:
            async for data in response.content.iter_any():
                for event in decoder.feed(data):
                    if event.data == "[DONE]":
                        return
                    chunk: Chunk = msgspec.json.decode(event.data)
                    if error := chunk.get("error"):
                        raise Refused(error)
                    if "headgate_keepalive" not in chunk:  # which only breaks a silence and has no number
                        self.received += 1
                        yield chunk
        raise ServerGone("The stream stopped before its end.")

    @asynccontextmanager
    async def _response(self) -> AsyncIterator[aiohttp.ClientResponse]:
        if self.run_id is None:
            request = self._door.request("POST", "/v1/chat/completions", json=self._question)
        else:
            query = {"stream": "true", "starting_after": str(self.received)}
            request = self._door.request("GET", f"/v1/chat/completions/{quote(self.run_id, safe='')}", params=query)
        async with request as response:
            if self.run_id is None and (run_id := response.headers.get("X-Workflow-ID")):
                self.run_id = run_id
                self.on_run(run_id)
            self._connected = self.run_id is not None
            yield response


class ChatDoor:
    """A server's `/v1`. Use as an async context manager."""

    def __init__(self, url: str, key: str | None = None, backoff_s: Sequence[float] = BACKOFF_S) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.backoff_s = backoff_s
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    def ask(self, question: Mapping[str, Any]) -> Answer:
        """A run that does not exist yet. `question` is the body of the request, `stream: true` included."""
        return Answer(self, question, None, 0)

    def follow(self, run_id: str, received: int = 0) -> Answer:
        """A run's stream after its first `received` chunks."""
        return Answer(self, None, run_id, received)

    async def models(self) -> Sequence[dict[str, Any]]:
        """Raises Refused, ServerGone."""
        async with self.request("GET", "/v1/models") as response:
            listed: Sequence[dict[str, Any]] = (await response.json())["data"]
            return listed

    @asynccontextmanager
    async def request(self, method: str, path: str, **arguments: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with a good status. Raises Refused for any other, ServerGone if nobody answers."""
        try:
            async with self._session.request(method, self.url + path, **arguments) as response:
                if response.status >= 400:
                    raise Refused(await _envelope(response))
                yield response
        except aiohttp.ClientConnectorError as error:
            raise ServerGone(
                f"Nothing answers at {self.url}. Start one with `headgate serve`, or name another: --url, HEADGATE_URL."
            ) from error
        except aiohttp.InvalidURL as error:
            raise ServerGone(f"'{self.url}' is not the address of a server; one looks like http://127.0.0.1:8080.") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ServerGone(f"The connection to {self.url} was lost.") from error


async def _envelope(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    try:
        error: Any = msgspec.json.decode(await response.read())["error"]
    except (msgspec.DecodeError, TypeError, KeyError):
        error = None
    if isinstance(error, dict):
        return error
    # Not ours: a proxy in between says that the server behind it is away.
    return {"message": f"HTTP {response.status}", "code": "backend_unavailable" if response.status in (502, 503, 504) else None}
