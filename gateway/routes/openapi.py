"""`/openapi.json`: the description of every route of this server, its own included."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version

import msgspec
from aiohttp import web

from gateway.access.rules import Access
from gateway.routes.route import Route
from gateway.wire.openapi import document
from gateway.wire.operation import Operation, Reply

_ABOUT = Operation("server", (Reply(200, "An OpenAPI 3.1 document."),))


class OpenApiRoutes:
    def __init__(self, others: Sequence[Route]) -> None:
        self._others = others

    def routes(self) -> list[Route]:
        return [Route("GET", "/openapi.json", Access.ANYBODY, self.describe, _ABOUT)]

    async def describe(self, request: web.Request) -> web.Response:
        """Read this description."""
        document = await asyncio.to_thread(lambda: self._document)
        return web.Response(body=document, content_type="application/json")

    @cached_property
    def _document(self) -> bytes:
        """Made when it is first wanted: it never changes, most processes are never asked, and it takes a tenth of a second."""
        described = [about for route in [*self._others, *self.routes()] if (about := route.described()) is not None]
        return msgspec.json.encode(document(described, version("headgate")))
