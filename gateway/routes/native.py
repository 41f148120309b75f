"""What the native routes share: reading what is asked, and answering with a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel

from gateway.transports.body import read_json_body
from gateway.wire.chat_request import SESSION_ID
from gateway.wire.task_bodies import parse_body
from orchestrator.errors import RunNotFound, SessionNotFound
from orchestrator.runs import is_run_id

_BODY_TIMEOUT_S = 60.0

Body = TypeVar("Body", bound=BaseModel)


def run_id(request: web.Request) -> str:
    """The run in the path. What cannot be an id is answered like an id that does not exist: RunNotFound."""
    named = request.match_info["id"]
    if not is_run_id(named):
        raise RunNotFound
    return named


def session_id(request: web.Request) -> str:
    """The session in the path. Raises SessionNotFound."""
    named = request.match_info["id"]
    if not re.fullmatch(SESSION_ID, named):
        raise SessionNotFound
    return named


async def asked(request: web.Request, model: type[Body], *, max_bytes: int, required: bool = True) -> Body:
    """The body as `model`. Where it is not `required` there may be none, of whichever type the client's library says it is."""
    if not required and not request.can_read_body:
        return parse_body(model, b"", required=False)
    raw = await read_json_body(request, max_bytes=max_bytes, timeout_s=_BODY_TIMEOUT_S)
    return parse_body(model, raw, required=required)


def answer(model: BaseModel | bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """`model`, or its JSON where that has been made already."""
    body = model if isinstance(model, bytes) else model.model_dump_json(by_alias=True).encode()
    return web.Response(status=status, body=body, headers={"Content-Type": "application/json", **(headers or {})})
