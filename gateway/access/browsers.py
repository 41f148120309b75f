"""What answers say to browsers: which pages may read them (CORS), and how not to misunderstand them.

One mechanism for all routes, used by the edge. Pages of the origins that `server.origins` lists may call everything, with the
headers that OpenAI's SDK sends from a browser, and may read our headers. A browser asks beforehand (a preflight), without a key;
it is answered for any path, so it tells nothing about them. Others are not refused here: their browser keeps the answer from
them. `*` means every page, and then never with cookies.

What a browser does not ask beforehand it just sends. Where nobody needs a key, that would let any page act here; so pages that
may not are refused there (`Origins.check`), and everywhere for WebSockets, which no browser asks about.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from aiohttp import web

from gateway.access.origins import Origins

REQUEST_HEADERS = (
    "authorization",
    "content-type",
    "accept",
    "cache-control",
    "idempotency-key",
    "last-event-id",
    "openai-beta",
    "openai-organization",
    "openai-project",
    "traceparent",
    "tracestate",
    "x-api-key",
    "x-request-id",
    "x-session-id",
    "x-stainless-arch",
    "x-stainless-lang",
    "x-stainless-os",
    "x-stainless-package-version",
    "x-stainless-retry-count",
    "x-stainless-runtime",
    "x-stainless-runtime-version",
    "x-stainless-timeout",
)
"""What a page may send. OpenAI's SDK adds to its own, so any `x-stainless-*` is allowed."""

RESPONSE_HEADERS = (
    "x-request-id",
    "x-workflow-id",
    "x-cache",
    "x-headgate-cache",
    "x-headgate-upstream",
    "x-headgate-attempt",
    "idempotency-replayed",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)
"""What a page may read, besides what any page may."""

PREFLIGHT_S = 600
"""How long a browser remembers what it was told."""

SECURE = {"Server": "headgate", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
"""On every answer: who answers (not with which version), that a type is what it says, and that our URLs go nowhere."""

_HSTS = "max-age=31536000"
_PAGE_POLICY = "default-src 'none'; frame-ancestors 'none'"
_METHODS = "GET, POST, PUT, PATCH, DELETE"
_STAINLESS = re.compile(r"x-stainless-[a-z0-9-]{1,64}")
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


class Browsers:
    """`keyless`: requests need no key. `tls`: this process speaks TLS itself."""

    def __init__(self, origins: Origins, *, keyless: bool, tls: bool) -> None:
        self._origins = origins
        self._keyless = keyless
        self._always = SECURE | ({"Strict-Transport-Security": _HSTS} if tls else {})
        self._exposed = ", ".join(RESPONSE_HEADERS)

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer, if this is a browser's question. Whoever may not is told nothing."""
        asked = request.headers
        if request.method != "OPTIONS" or "Origin" not in asked or "Access-Control-Request-Method" not in asked:
            return None
        answer = web.Response(status=204)
        if self._origins.allowed(asked) is not None:
            answer.headers["Access-Control-Allow-Methods"] = _METHODS
            answer.headers["Access-Control-Allow-Headers"] = _allowed(asked.getall("Access-Control-Request-Headers", []))
            answer.headers["Access-Control-Max-Age"] = str(PREFLIGHT_S)
        return answer

    def check(self, request: web.Request) -> None:
        """Raises OriginNotAllowed for what a page must not do, and its browser would not ask about."""
        headers = request.headers
        if "Origin" in headers and ("Upgrade" in headers or (self._keyless and request.method not in _SAFE)):
            self._origins.check(headers)

    def inform(self, request: web.BaseRequest, headers: MutableMapping[str, str], content_type: str) -> None:
        """Put on an answer what browsers need to know. `headers` are the answer's."""
        headers.update(self._always)
        if content_type == "text/html":
            headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
        if not self._origins.by_origin:
            if "Origin" in request.headers and self._origins.anybody:
                headers["Access-Control-Allow-Origin"] = "*"
                headers["Access-Control-Expose-Headers"] = self._exposed
            return
        headers["Vary"] = f"{headers['Vary']}, Origin" if "Vary" in headers else "Origin"
        if (origin := self._origins.allowed(request.headers)) is not None:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Access-Control-Allow-Credentials"] = "true"
            headers["Access-Control-Expose-Headers"] = self._exposed


def _allowed(asked: list[str]) -> str:
    more = {name.strip().lower() for name in ",".join(asked).split(",")[:64]}.difference(REQUEST_HEADERS)
    return ", ".join((*REQUEST_HEADERS, *sorted(name for name in more if _STAINLESS.fullmatch(name))))
