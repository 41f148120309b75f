"""Any error as an HTTP response: status, headers, and the JSON envelope of the API that the path belongs to."""

from __future__ import annotations

from aiohttp import web

from gateway.errors import NATIVE, MethodNotAllowed, RouteNotFound, envelope, headers, native_envelope
from orchestrator.errors import Failure, HeadgateError, InvalidRequest


def error_response(error: HeadgateError | Failure, path: str, request_id: str) -> web.Response:
    body = native_envelope(error, request_id) if path.startswith(NATIVE) else envelope(error)
    named = {"Content-Type": "application/json", "x-request-id": request_id}
    return web.Response(status=error.status, body=body, headers={**named, **headers(error)})


def of_http(raised: web.HTTPException) -> HeadgateError:
    """What aiohttp raises by itself, in our words; its own would be plain text."""
    if isinstance(raised, web.HTTPMethodNotAllowed):
        return MethodNotAllowed(allow=tuple(sorted(raised.allowed_methods)))
    if isinstance(raised, web.HTTPNotFound):
        return RouteNotFound()
    error = InvalidRequest() if 400 <= raised.status < 500 else HeadgateError()
    error.status = raised.status
    return error
