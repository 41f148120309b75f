"""`GET /v1/models` and `GET /v1/models/{id}`: what can be named as `model`."""

from __future__ import annotations

import msgspec
from aiohttp import web

from gateway.access.rules import Access
from gateway.routes.route import Route
from gateway.wire.openai_models import ModelList, ModelShown
from gateway.wire.operation import Operation, Reply
from orchestrator.engine import Engine
from orchestrator.upstreams.upstream import ModelCard

_LIST = Operation("models", (Reply(200, "The models.", ModelList),))
_GET = Operation("models", (Reply(200, "The model.", ModelShown),), path={"id": "The model's name; slashes may be escaped."})


class ModelRoutes:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/v1/models", Access.READ, self.list, _LIST),
            Route("GET", "/v1/models/{id:.+}", Access.READ, self.retrieve, _GET),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """List the models that can be named."""
        cards = await self._engine.models()
        return _json({"object": "list", "data": [_shown(card) for card in cards]})

    async def retrieve(self, request: web.Request) -> web.Response:
        """Look at one model.

        Also a name that only a pass-through entry covers: whether its upstream knows it shows when it is used.
        """
        name = request.match_info["id"]
        resolved = self._engine.resolve(name)
        cards = (card for card in await self._engine.models() if card.id == name)
        return _json(_shown(next(cards, ModelCard(name, owned_by=resolved.entry.owned_by))))


def _shown(card: ModelCard) -> dict[str, object]:
    return {"id": card.id, "object": "model", "created": card.created, "owned_by": card.owned_by}


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")
