"""The client's side of the sockets, over aiohttp: calls, and readings of streams. It tries nothing twice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec

from headgate.calls import Call
from headgate.errors import BadAnswer, refusal
from headgate.reading import CONNECT_S, Listening, Messages, Reading, ServerSent, Transport, address, losses

T = TypeVar("T")


class Connection:
    """To one server. `answered`: a call was answered, so the address is that of a server."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")  # the address that OpenAI's clients are given does as well
        self.answered = False
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, call: Call[T]) -> T:
        """Raises Refused, ServerGone, BadAnswer."""
        body = None if call.body is None else msgspec.json.encode(call.body)
        headers = {**call.headers, "Content-Type": "application/json"} if body is not None else call.headers
        url = address(self.url, call.path, call.query)
        with losses(self.url):
            async with self._http.request(call.method, url, data=body, headers=headers, timeout=self._timeout) as response:
                self.answered = True
                status, answer = response.status, await response.read()
        if status >= 400 and status != call.accepts:
            raise refusal(status, response.headers, answer)
        try:
            return call.read(answer, response.headers)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadAnswer(f"{self.url} does not answer as Headgate does: {error}.") from None

    def reading(self, transport: Transport, query: Mapping[str, str]) -> Reading:
        """A connection of a stream, to be entered."""
        return (ServerSent if transport == "sse" else Messages)(self._http, self.url, query)

    def listening(self, path: str, query: Mapping[str, str]) -> Listening:
        """A connection of a stream of server-sent events, to be entered."""
        return Listening(self._http, self.url, path, query)

    async def begin(self, call: Call[T]) -> T:
        """A call whose answer is a stream that somebody else may read: only its headers count. Raises as `call` does."""
        url, body = address(self.url, call.path, call.query), msgspec.json.encode(call.body)
        headers = {**call.headers, "Content-Type": "application/json"}
        with losses(self.url):
            async with self._http.request(call.method, url, data=body, headers=headers, timeout=self._timeout) as response:
                self.answered = True
                if response.status >= 400:
                    raise refusal(response.status, response.headers, await response.read())
                begun = call.read(b"", response.headers)
                response.close()
                return begun

    @property
    def _http(self) -> aiohttp.ClientSession:
        """Made when it is first used, because it belongs to the loop that runs then."""
        if self._session is None:
            # Nobody else's cookies, and no limit to how many streams are read at once.
            self._session = aiohttp.ClientSession(
                headers=self._headers, cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=0)
            )
        return self._session
