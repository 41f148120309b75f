"""Any error as an HTTP response: status, headers, and the JSON envelope."""

from __future__ import annotations

from aiohttp import web

from gateway.errors import MethodNotAllowed, RouteNotFound, envelope, headers
from orchestrator.errors import Failure, HeadgateError, InvalidRequest


def error_response(error: HeadgateError | Failure) -> web.Response:
    return web.Response(status=error.status, body=envelope(error), headers={"Content-Type": "application/json", **headers(error)})


def of_http(raised: web.HTTPException) -> HeadgateError:
    """What aiohttp raises by itself, in our words; its own would be plain text."""
    if isinstance(raised, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(allow=tuple(sorted(raised.allowed_methods)))
    if isinstance(raised, web.HTTPNotFound):
        return RouteNotFound()
    error = InvalidRequest() if 400 <= raised.status < 500 else HeadgateError()
    error.status = raised.status
    return error
