"""The orchestrators that a gateway may ask. They share their backends, so any of them can answer anything.

New requests go round; one that did not answer lately comes last. A request that is refused or lost before it can have had an
effect goes on to the next. One that may have been carried out is sent again only if that does no harm.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from orchestrator import trace
from orchestrator.errors import HeadgateError, Unavailable
from orchestrator.http.refusal import unpack
from orchestrator.runs import Principal
from orchestrator.signing import HEADER, Signer

_log = logging.getLogger(__name__)

AVOIDED_S = 5.0
"""How long an orchestrator that did not answer comes last."""

CONNECT_S = 3.0
_CALL_S = 60.0

_UNTOUCHED: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""The request did not leave."""


class OrchestratorAway(Unavailable):
    """The orchestrator does not answer. Try again shortly."""


class Refused(Exception):
    """An orchestrator answered with an error."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(status, body[:200])
        self.status = status
        self.headers = headers
        self.body = body

    def error(self) -> HeadgateError:
        """What the caller is told: the engine's own error; or, if it is not one that was meant for callers, that it is away."""
        if (told := unpack(self.body)) is not None:
            return told
        _log.error("an orchestrator refused its gateway with status %d: %r", self.status, self.body[:200])
        return OrchestratorAway(retry_after_s=1)

    @property
    def draining(self) -> bool:
        told = unpack(self.body)
        return told is not None and told.code == "draining"


@asynccontextmanager
async def peer_session() -> AsyncIterator[aiohttp.ClientSession]:
    """The connections to orchestrators: one per stream that is open, and a few for calls."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=10, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
    ) as session:
        yield session


class Peers:
    """`clock` is monotonic; `request_id` tells that of the request which is being served."""

    def __init__(
        self,
        urls: Sequence[str],
        signer: Signer,
        session: aiohttp.ClientSession,
        clock: Callable[[], float],
        request_id: Callable[[], str],
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._signer = signer
        self._session = session
        self._clock = clock
        self._request_id = request_id
        self._turn = 0
        self._missed_at: dict[str, float] = {}

    def order(self) -> Sequence[str]:
        """All of them, in the order to try."""
        self._turn = (self._turn + 1) % len(self._urls)
        since = self._clock() - AVOIDED_S
        rotated = self._urls[self._turn :] + self._urls[: self._turn]
        return sorted(rotated, key=lambda url: self._missed_at.get(url, since) > since)

    def missed(self, url: str) -> None:
        """This one did not answer."""
        self._missed_at[url] = self._clock()

    def headers(
        self, method: str, target: str, principal: Principal, only_run: str | None = None, body: bytes = b""
    ) -> dict[str, str]:
        """What makes a request one of ours. `target`: the path and the query, as they will travel."""
        request_id = self._request_id()
        signed = self._signer.sign(method, target, principal, request_id, only_run, body)
        return {HEADER: signed, "x-request-id": request_id, **trace.carried()}

    async def call(self, path: str, principal: Principal, message: bytes, *, repeatable: bool) -> bytes:
        """The answer to a call. Raises what the orchestrator raised; OrchestratorAway."""
        refused: Refused | None = None
        for url in [*(order := self.order()), *(order[:1] if repeatable else ())]:
            try:
                headers = self.headers("POST", path, principal, body=message) | {"Content-Type": "application/json"}
                timeout = aiohttp.ClientTimeout(total=_CALL_S, sock_connect=CONNECT_S)
                data = BytesIO(message)  # which aiohttp sends in pieces, however large it is
                async with self._session.post(url + path, data=data, headers=headers, timeout=timeout) as response:
                    body = await response.read()
                    if response.status < 400:
                        return body
                    refused = Refused(response.status, response.headers, body)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.missed(url)
                if not repeatable and not isinstance(error, _UNTOUCHED):
                    raise OrchestratorAway("The orchestrator was lost before it answered.", retry_after_s=1) from error
                continue
            if not refused.draining:
                raise refused.error()
        raise OrchestratorAway(retry_after_s=1) if refused is None else refused.error()

    async def stream(
        self,
        target: str,
        principal: Principal,
        *,
        silence_s: float,
        headers: Mapping[str, str] | None = None,
        only_run: str | None = None,
    ) -> aiohttp.ClientResponse:
        """A response whose body is a stream, to be closed by the caller; `silence_s` without a byte breaks it.

        Raises Refused for an error status, OrchestratorAway if there is no answer.
        """
        refused: Refused | None = None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
        for url in self.order():
            signed = CIMultiDict(headers or {})
            signed.update(self.headers("GET", target, principal, only_run))
            try:
                response = await self._session.get(
                    URL(url + target, encoded=True), headers=signed, timeout=timeout, allow_redirects=False
                )
                if response.status < 400:
                    return response
                async with response:
                    refused = Refused(response.status, response.headers, await response.read())
            except (aiohttp.ClientError, TimeoutError):
                self.missed(url)
                continue
            if refused.status != 503:
                raise refused
        raise OrchestratorAway(retry_after_s=1) if refused is None else refused
