"""The client's socket side: one call, or one connection of a stream, over aiohttp. It tries nothing twice."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal, TypeVar

import aiohttp
import msgspec
from yarl import URL

from gateway.wire.sse_decoder import Decoder
from headgate.calls import Call
from headgate.errors import BadAnswer, ServerGone, refusal
from headgate.events import Event, of_message, of_server_event

T = TypeVar("T")
Transport = Literal["sse", "ws"]

CONNECT_S = 10.0
SILENCE_S = 45.0
"""A stream that brings nothing for so long is dead: the server would have sent keepalives."""
CLOSE_S = 2.0
"""How long a WebSocket that is no longer wanted waits for the server's goodbye."""
MAX_EVENT_BYTES = 64 << 20


class Connection:
    """To one server. `answered`: it has, at least once."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self.url = base_url.rstrip("/")
        self.answered = False
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, call: Call[T]) -> T:
        """Raises Refused, ServerGone, BadAnswer."""
        body = None if call.body is None else msgspec.json.encode(call.body)
        headers = {**call.headers, "Content-Type": "application/json"} if body is not None else call.headers
        async with self._losses():
            request = self._http.request(
                call.method, self._address(call.path, call.query), data=body, headers=headers, timeout=self._timeout
            )
            async with request as response:
                self.answered = True
                status, answer = response.status, await response.read()
        if status >= 400 and status != call.accepts:
            raise refusal(status, response.headers, answer)
        try:
            return call.read(answer, response.headers)
        except msgspec.DecodeError as error:
            raise BadAnswer(f"{self.url} does not answer as Headgate does: {error}.") from None

    def events(self, transport: Transport, query: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        """What one connection of a stream brings, as it comes. It ends when the connection does, for whichever reason.

        The first batch is empty: the server has agreed. Raises Refused, ServerGone, BadAnswer.
        """
        return self._server_sent(query) if transport == "sse" else self._messages(query)

    async def _server_sent(self, query: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        decoder = Decoder(MAX_EVENT_BYTES)
        position = query.get("last_event_id", "")
        async with (
            self._losses(),
            self._http.get(self._address("/api/v1/stream/sse", query), timeout=self._patience) as response,
        ):
            self.answered = True
            if response.status >= 400:
                raise refusal(response.status, response.headers, await response.read())
            if response.content_type != "text/event-stream":
                raise BadAnswer(f"{self.url} does not answer with an event stream.")
            yield []
            async for data in response.content.iter_any():
                events = []
                for said in decoder.feed(data):
                    events.append(of_server_event(said, query["workflow_id"], position))
                    position = said.id or position
                if events:
                    yield events

    async def _messages(self, query: Mapping[str, str]) -> AsyncGenerator[list[Event], None]:
        connecting = self._http.ws_connect(
            self._address("/api/v1/stream/ws", query),
            heartbeat=SILENCE_S / 2,
            max_msg_size=MAX_EVENT_BYTES,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
        )
        async with self._losses(), connecting as socket:
            self.answered = True
            yield []
            async for message in socket:
                if message.type is aiohttp.WSMsgType.ERROR:
                    raise ServerGone(f"The connection to {self.url} was lost.")
                if (event := of_message(message.data)) is not None:
                    yield [event]

    @property
    def _http(self) -> aiohttp.ClientSession:
        """Made when it is first used, because it belongs to the loop that runs then."""
        if self._session is None:
            # Nobody else's cookies, and no limit to how many streams are read at once.
            self._session = aiohttp.ClientSession(
                headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0)
            )
        return self._session

    def _address(self, path: str, query: Mapping[str, str]) -> URL:
        """The path as it is: an id that needed quoting stays quoted."""
        return URL(self.url + path, encoded=True).with_query(query)

    @asynccontextmanager
    async def _losses(self) -> AsyncIterator[None]:
        """What can happen to a connection, in the client's words."""
        try:
            yield
        except aiohttp.WSServerHandshakeError as error:
            self.answered = True
            raise refusal(error.status, error.headers or {}) from None
        except aiohttp.ClientConnectorError as error:
            raise ServerGone(f"Nothing answers at {self.url}.") from error
        except aiohttp.InvalidURL as error:
            raise ServerGone(f"'{self.url}' is not the address of a server; one looks like http://127.0.0.1:8080.") from error
        except TimeoutError as error:
            raise ServerGone(f"{self.url} did not answer in time.") from error
        except aiohttp.ClientError as error:
            raise ServerGone(f"The connection to {self.url} was lost.") from error
