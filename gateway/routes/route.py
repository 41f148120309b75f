"""What a route is: a method, a path, who may call it, and its handler. A route cannot be written without its rule."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from aiohttp import web

from gateway.access.keys import Access
from gateway.transports.body import no_early_continue


class Route(NamedTuple):
    method: str
    path: str
    access: Access
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes(app: web.Application, routes: Iterable[Route]) -> dict[web.AbstractRoute, Access]:
    """Register `routes`; returns the rule of each."""
    return {
        app.router.add_route(route.method, route.path, route.handler, expect_handler=no_early_continue): route.access
        for route in routes
    }
