"""`/docs`: a page that shows `/openapi.json` to people, and `/`, which leads there. It needs nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from aiohttp import web

from gateway.access.rules import Access
from gateway.routes.route import Route
from gateway.wire.operation import Operation, Reply

_ABOUT = Operation("server", (Reply(200, "A page.", media="text/html"),))
_HOME = Operation("server", (Reply(307, "Go there.", media=None, headers={"Location": "The page."}),))


class DocsRoutes:
    def __init__(self) -> None:
        page = (files("gateway.routes") / "docs.html").read_text("utf-8")
        self._page = page.encode()
        self._policy = (
            f"default-src 'none'; script-src {_hash(page, 'script')}; style-src {_hash(page, 'style')}; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/", Access.ANYBODY, self.home, _HOME),
            Route("GET", "/docs", Access.ANYBODY, self.page, _ABOUT),
        ]

    async def home(self, request: web.Request) -> web.Response:
        """Go to the page about this server, for whoever opens its address in a browser."""
        return web.Response(status=307, headers={"Location": "docs"})

    async def page(self, request: web.Request) -> web.Response:
        """Read this description as a page."""
        headers = {"Content-Security-Policy": self._policy}
        return web.Response(body=self._page, headers=headers, content_type="text/html", charset="utf-8")


def _hash(page: str, tag: str) -> str:
    """The one inline `tag` of the page, as a source that a content security policy can allow."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
