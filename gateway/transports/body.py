"""Reading a request's body, within a bound of size and time.

What the headers already rule out (wrong type, too long) is refused before a byte of the body is read, and before a client that
asked with `Expect: 100-continue` is told to go on. A body of unknown length is read up to the bound and no further.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from gateway.errors import BodyTooLarge, UnsupportedMediaType
from orchestrator.errors import HeadgateError, InvalidRequest


class BodyTooSlow(HeadgateError):
    """The request body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class BodyBroken(InvalidRequest):
    """The request body is not framed as its headers say."""

    code = "invalid_body"


class ExpectationFailed(InvalidRequest):
    """The only expectation that can be met is '100-continue'."""

    status = 417
    code = "expectation_failed"


async def read_json_body(request: web.Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """The raw bytes of a body that says it is JSON (or says nothing)."""
    headers = request.headers
    if headers.get("Content-Type") and request.content_type != "application/json":
        raise UnsupportedMediaType
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Compressed request bodies are not accepted.")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    _go_on(request, headers.get("Expect"))
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTooSlow from None
    except web.RequestPayloadError:
        raise BodyBroken from None


async def no_early_continue(request: web.Request) -> None:
    """An `expect_handler` that leaves `100 Continue` to the reading of the body."""


async def _read(request: web.Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.content.iter_any():
        body += piece
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than {max_bytes} bytes.")


def _go_on(request: web.Request, expectation: str | None) -> None:
    """RFC 9110, section 10.1.1."""
    if expectation is None or request.version < (1, 1):
        return
    if expectation.lower() != "100-continue":
        raise ExpectationFailed
    if request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
