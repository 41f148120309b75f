"""Any server that speaks OpenAI's chat completions, over one shared aiohttp session.

The request goes out as it came, every field, with `model`, `stream` and `stream_options` added. The answer is read as fast as
the pieces are taken and no faster: aiohttp stops reading the socket while 128 KiB wait here. Every wait has a bound: connecting,
silence, the whole answer. Closing the iterator closes the socket at once.

No retries (see `routing.py`), no redirects, no cookies, no proxies from the environment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiohttp
import msgspec

from orchestrator import trace
from orchestrator.upstreams.chunks import AnswerReader
from orchestrator.upstreams.config import OpenAIConfig
from orchestrator.upstreams.eventstream import EventStreamReader
from orchestrator.upstreams.rejections import Scrubber, rejection, reported
from orchestrator.upstreams.upstream import (
    Call,
    ModelCard,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
)

MODELS_TIMEOUT_S = 2.0
MAX_ERROR_BYTES = 64 * 1024
"""How much of an error's body is read; what matters is in its first lines."""

READ_BUFFER_BYTES = 64 * 1024
"""aiohttp stops reading the socket when twice as much waits here."""

LINGER_S = 0.05
"""How long to wait after `[DONE]` for the body to end, so that the connection can be used again."""


@asynccontextmanager
async def upstream_session() -> AsyncIterator[aiohttp.ClientSession]:
    """The session that all upstreams of a process share. The number of connections is the number of running calls."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={"User-Agent": "headgate", "Accept-Encoding": "identity"},
    ) as session:
        yield session


class OpenAIUpstream:
    def __init__(
        self,
        name: str,
        config: OpenAIConfig,
        session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` tells seconds since the epoch, in which `Call.deadline_ms` is given."""
        self.name = name
        self.continues = config.continues
        self._config = config
        self._session = session
        self._clock = clock
        self._headers = _headers(config)
        secrets = [secret.get_secret_value() for secret in config.headers.values()]
        if config.api_key is not None:
            secrets.append(config.api_key.get_secret_value())
        self._scrub = Scrubber(config.base_url, secrets)

    async def stream(self, call: Call) -> AsyncGenerator[Sequence[Piece], None]:
        """See `Upstream.stream`."""
        timeout = self._timeout(call)
        answer = AnswerReader(self._reported, choices=_choices(call.body))
        with _translating():
            async with self._session.post(
                self._config.base_url + "/chat/completions",
                data=self._request(call),
                headers={**self._headers, **trace.carried()},
                allow_redirects=False,
                timeout=timeout,
                read_bufsize=READ_BUFFER_BYTES,
            ) as response:
                await self._check_status(response)
                if _is_json(response):
                    yield answer.read_whole(await self._read_whole(response))
                else:
                    body = _Body(response.content, answer, self._config)
                    while not body.ended:
                        if pieces := await body.next():
                            yield pieces
        if answer.failure is not None:
            raise answer.failure

    async def models(self) -> Sequence[ModelCard]:
        """See `Upstream.models`."""
        with _translating():
            async with self._session.get(
                self._config.base_url + "/models",
                headers=self._headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=MODELS_TIMEOUT_S),
            ) as response:
                await self._check_status(response)
                body = await self._read_whole(response)
        try:
            cards = msgspec.json.decode(body, type=_Models).data
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UpstreamGarbled("The upstream's list of models is not one.") from error
        return [ModelCard(card.id, card.created or 0, card.owned_by or "upstream") for card in cards]

    async def embed(self, model: str, text: str) -> Sequence[float]:
        """What the text means to this model of `POST /embeddings`: a vector that is not nothing. Raises UpstreamError."""
        with _translating():
            async with self._session.post(
                self._config.base_url + "/embeddings",
                data=msgspec.json.encode({"model": model, "input": text, "encoding_format": "float"}),
                headers={**self._headers, **trace.carried()},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self._config.idle_timeout_s),
            ) as response:
                await self._check_status(response)
                body = await self._read_whole(response)
        try:
            (found,) = msgspec.json.decode(body, type=_Embeddings).data
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            raise UpstreamGarbled("The upstream's embedding is not one.") from error
        if not any(found.embedding):
            raise UpstreamGarbled("The upstream's embedding is nothing.")
        return found.embedding

    async def close(self) -> None:
        """Nothing: the session belongs to whoever opened it."""

    async def _check_status(self, response: aiohttp.ClientResponse) -> None:
        if response.status >= 400:
            body = await response.content.read(MAX_ERROR_BYTES)
            raise rejection(response.status, body, response.headers, self._scrub, self._clock())
        if response.status != 200:
            raise UpstreamGarbled(f"The upstream answered with status {response.status}; redirects are not followed.")

    async def _read_whole(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        while data := await response.content.readany():
            body += data
            if len(body) > self._config.max_answer_bytes:
                raise _too_large(self._config)
        return bytes(body)

    def _request(self, call: Call) -> bytes:
        config = self._config
        body: dict[str, Any] = {**call.body, "model": call.model, "stream": config.stream}
        if config.stream and config.usage:
            body["stream_options"] = {"include_usage": True}
        if not config.developer_role:
            body["messages"] = [_without_developer(message) for message in body.get("messages", ())]
        if call.prefix and config.continues:
            body["messages"] = [*body.get("messages", ()), {"role": "assistant", "content": call.prefix}]
            body.update(config.continue_fields)
        return msgspec.json.encode(body)

    def _timeout(self, call: Call) -> aiohttp.ClientTimeout:
        total_s = self._config.total_timeout_s
        if call.deadline_ms is not None:
            total_s = min(total_s, call.deadline_ms / 1000 - self._clock())
        if total_s <= 0:
            raise UpstreamTooSlow
        # A whole answer arrives after the last word was thought of: silence before it is no sign of anything.
        idle_s = self._config.idle_timeout_s if self._config.stream else None
        return aiohttp.ClientTimeout(total=total_s, connect=self._config.connect_timeout_s, sock_read=idle_s)

    def _reported(self, data: bytes) -> UpstreamError:
        return reported(data, self._scrub)


class _Model(msgspec.Struct):
    id: str
    created: int | None = None
    owned_by: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, TimeoutError) as error:
        raise translated(error) from error


def translated(error: aiohttp.ClientError | TimeoutError) -> UpstreamError:
    """The UpstreamError for what aiohttp raised, without its text: that names addresses."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return UpstreamUnreachable("The upstream did not accept a connection in time.")
        case aiohttp.SocketTimeoutError():
            return UpstreamSilent()
        case TimeoutError():
            return UpstreamTooSlow()
        case aiohttp.ClientConnectorError() | aiohttp.ClientSSLError() | aiohttp.InvalidURL():
            return UpstreamUnreachable()
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError():
            return UpstreamCut()
    return UpstreamGarbled("The upstream's answer is not HTTP.")


class _Body:
    """The body of a streamed answer, read as far as the answer goes. `ended` when there is no more to read."""

    def __init__(self, content: aiohttp.StreamReader, answer: AnswerReader, config: OpenAIConfig) -> None:
        self.ended = False
        self._content = content
        self._answer = answer
        self._config = config
        self._events = EventStreamReader(config.max_line_bytes)
        self._budget = config.max_answer_bytes

    async def next(self) -> list[Piece]:
        """The pieces that one read brings, perhaps none."""
        answer = self._answer
        if answer.done:
            return await self._linger()
        try:
            data = await self._content.readany()
        except (aiohttp.ClientPayloadError, aiohttp.SocketTimeoutError):
            if not answer.finished:
                raise
            data = b""
        if not data:
            self.ended = True
            return answer.end(self._events.rest())
        self._budget -= len(data)
        pieces = answer.read(self._events.feed(data))
        answer.failure = answer.failure or self._excess()
        self.ended = answer.failure is not None or (answer.done and self._content.at_eof())
        return pieces

    def _excess(self) -> UpstreamGarbled | None:
        """Why no more of this body is read, if it is too much. An answer that is done does not mind."""
        if self._answer.done:
            return None
        return self._events.failure or (_too_large(self._config) if self._budget < 0 else None)

    async def _linger(self) -> list[Piece]:
        """Wait a moment for the end of a body that has said all: a connection that is read to its end is used again."""
        self.ended = True
        try:
            async with asyncio.timeout(LINGER_S):
                await self._content.readany()
        except (TimeoutError, aiohttp.ClientError):
            pass  # then the connection is closed, which is all that was at stake
        return []


def _too_large(config: OpenAIConfig) -> UpstreamGarbled:
    return UpstreamGarbled(f"The upstream's answer is larger than {config.max_answer_bytes} bytes.")


def _headers(config: OpenAIConfig) -> Mapping[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json"}
    if config.api_key is not None and config.api_key.get_secret_value():
        headers["Authorization"] = f"Bearer {config.api_key.get_secret_value()}"
    headers.update((name, secret.get_secret_value()) for name, secret in config.headers.items())
    return headers


def _without_developer(message: Any) -> Any:
    if isinstance(message, dict) and message.get("role") == "developer":
        return {**message, "role": "system"}
    return message


def _is_json(response: aiohttp.ClientResponse) -> bool:
    """A whole answer or an error. Anything that is not a page is taken for an event stream, whatever it calls itself."""
    if response.content_type == "text/html":
        raise UpstreamGarbled("The upstream answered with a web page. Check the upstream's `base_url`.")
    return response.content_type == "application/json" or response.content_type.endswith("+json")


def _choices(body: Mapping[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) and n > 0 else 1
