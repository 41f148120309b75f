"""What a route is: a method, a path, who may call it, its handler, and what it takes and gives.

A route cannot be written without its rule. One without an `about` is nobody's business but our own processes': it is not in
the description of the API. A test fails on a public one that is not.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from aiohttp import web

from gateway.access.rules import Access
from gateway.transports.body import no_early_continue
from gateway.wire.operation import Described, Operation

_PATTERN = re.compile(r"\{(\w+)(:[^{}]*)?\}")


class Route(NamedTuple):
    method: str
    path: str
    access: Access
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    about: Operation | None = None

    def described(self) -> Described | None:
        if self.about is None:
            return None
        path = _PATTERN.sub(r"{\1}", self.path)
        name, doc = self.handler.__name__, self.handler.__doc__ or ""
        return Described(self.method, path, name, doc, self.access is not Access.ANYBODY, self.access.scope, self.about)


def add_routes(app: web.Application, routes: Iterable[Route]) -> dict[web.AbstractRoute, Access]:
    """Register `routes`; returns the rule of each."""
    return {
        app.router.add_route(route.method, route.path, route.handler, expect_handler=no_early_continue): route.access
        for route in routes
    }
