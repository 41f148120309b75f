"""One connection of a stream: opened, read as it comes, closed. What happens to it is told in the client's own errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, Protocol, Self

import aiohttp
from yarl import URL

from gateway.wire.sse_decoder import Decoder, EventTooLong, ServerEvent
from headgate.errors import BadAnswer, ServerGone, refusal
from headgate.events import Event, of_message, of_server_event

Transport = Literal["sse", "ws"]

CONNECT_S = 10.0
SILENCE_S = 45.0
"""A stream that brings nothing for so long is dead: the server would have sent keepalives."""
CLOSE_S = 2.0
"""How long a WebSocket that is no longer wanted waits for the server's goodbye."""
MAX_EVENT_BYTES = 64 << 20


class Reading(Protocol):
    """Entered, it stands: the server has agreed. Entering and reading raise Refused, ServerGone, BadAnswer."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def next(self) -> list[Event] | None:
        """What has come, perhaps nothing; None when the connection is over, for whichever reason."""


class Listening:
    """Server-sent events, as they are sent."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, path: str, query: Mapping[str, str]) -> None:
        self._http = http
        self._url = base_url
        self._path = path
        self._query = query
        self._decoder = Decoder(MAX_EVENT_BYTES)
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        with losses(self._url):
            response = await self._http.get(address(self._url, self._path, self._query), timeout=timeout)
            try:
                if response.status >= 400:
                    raise refusal(response.status, response.headers, await response.read())
                if response.content_type != "text/event-stream":
                    raise BadAnswer(f"{self._url} does not answer with an event stream.")
            except BaseException:
                response.close()
                raise
        self._response = response
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()

    async def hear(self) -> list[ServerEvent] | None:
        """What has come, perhaps nothing; None when the connection is over, for whichever reason."""
        assert self._response is not None
        with losses(self._url):
            data = await self._response.content.readany()
        if not data:
            return None
        try:
            return list(self._decoder.feed(data))
        except EventTooLong as error:
            raise BadAnswer(f"{self._url} sent {error}.") from None


class ServerSent(Listening):
    """The events of a task's stream."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, query: Mapping[str, str]) -> None:
        super().__init__(http, base_url, "/api/v1/stream/sse", query)
        self._position = query.get("last_event_id", "")

    async def next(self) -> list[Event] | None:
        heard = await self.hear()
        if heard is None:
            return None
        events = []
        for said in heard:
            events.append(of_server_event(said, self._query["workflow_id"], self._position))
            self._position = said.id or self._position
        return events


class Messages:
    """WebSocket messages. Their answers to operations are not events."""

    def __init__(self, http: aiohttp.ClientSession, base_url: str, query: Mapping[str, str]) -> None:
        self._http = http
        self._url = base_url
        self._query = query
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def __aenter__(self) -> Self:
        with losses(self._url):
            self._socket = await self._http.ws_connect(
                address(self._url, "/api/v1/stream/ws", self._query),
                heartbeat=SILENCE_S / 2,
                max_msg_size=MAX_EVENT_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._socket is not None:
            await self._socket.close()

    async def next(self) -> list[Event] | None:
        assert self._socket is not None
        with losses(self._url):
            message = await self._socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            event = of_message(message.data)
            return [] if event is None else [event]
        return [] if message.type is aiohttp.WSMsgType.BINARY else None


def address(base_url: str, path: str, query: Mapping[str, str]) -> URL:
    """The path as it is: an id that was quoted stays quoted."""
    return URL(base_url + path, encoded=True).with_query(query)


@contextmanager
def losses(base_url: str) -> Iterator[None]:
    """What can happen to a connection, in the client's words."""
    try:
        yield
    except aiohttp.WSServerHandshakeError as error:
        raise refusal(error.status, error.headers or {}) from None
    except aiohttp.ClientConnectorError as error:
        raise ServerGone(f"Nothing answers at {base_url}.") from error
    except aiohttp.InvalidURL as error:
        raise ServerGone(f"'{base_url}' is not the address of a server; one looks like http://127.0.0.1:8080.") from error
    except TimeoutError as error:
        raise ServerGone(f"{base_url} did not answer in time.") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise ServerGone(f"The connection to {base_url} was lost.") from error
