"""The OpenAPI 3.1 document of a set of routes, made from the models that check what they take and give. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.errors import NATIVE
from gateway.wire.chat_request import SESSION_ID
from gateway.wire.openai_models import OpenAIError
from gateway.wire.operation import EVENT_STREAM, Described, Operation, Reply
from gateway.wire.rest_models import NativeError
from orchestrator.streamlog.log import POSITION

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]

_ABOUT = """\
An OpenAI-compatible streaming gateway for durable agent runs. A run that was started at any door can be watched, resumed and
controlled at any other: the task of the native routes, the completion of `/v1/chat/completions` and the workflow of an event
stream are one thing with one id.
"""

_TAGS = {
    "chat": "OpenAI's chat completions, and resuming them.",
    "models": "What can be asked.",
    "tasks": "Runs by another name: submit, look at, control.",
    "progress": "How far tasks are, step by step.",
    "streams": "A task's events, live and from any position.",
    "approvals": "Decisions that tasks wait for.",
    "sessions": "Tasks that belong together.",
    "usage": "What was used, and what it cost.",
    "keys": "Your tenant's API keys.",
    "server": "How the server is, and what it can do.",
}

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key: `Authorization: Bearer …`."},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key, by itself."},
    "ticket": {
        "type": "apiKey",
        "in": "query",
        "name": "ticket",
        "description": "A token of one minute from `POST /api/v1/stream/tickets`, for browsers, whose streams send no headers.",
    },
}

_FORMS = {
    "Idempotency-Key": "^[!-~]{1,255}$",
    "Last-Event-ID": POSITION,
    "X-Session-ID": SESSION_ID,
}
"""What headers look like that are not any text. A header means the same on every route."""

_NAMED = re.compile(r"\{(\w+)\}")


def document(routes: Sequence[Described], version: str) -> Json:
    """Every route of `routes`, whichever order they come in."""
    schemas = _Schemas(_models(routes))
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headgate", "version": version, "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": paths,
        "components": {"schemas": schemas.definitions, "securitySchemes": _SCHEMES},
    }


class _Schemas:
    """The schemas of all models under `components`, and how each is referred to."""

    def __init__(self, models: Iterable[tuple[type[BaseModel], Mode]]) -> None:
        where = "#/components/schemas/{model}"
        self._references, whole = models_json_schema(list(dict.fromkeys(models)), ref_template=where)
        self.definitions: Json = whole["$defs"]

    def of(self, model: type[BaseModel], mode: Mode) -> Json:
        return self._references[model, mode]


def _models(routes: Iterable[Described]) -> Iterator[tuple[type[BaseModel], Mode]]:
    yield NativeError, "serialization"
    yield OpenAIError, "serialization"
    for route in routes:
        if route.operation.body is not None:
            yield route.operation.body, "validation"
        for reply in route.operation.replies:
            if reply.model is not None:
                yield reply.model, "serialization"


def _operation(route: Described, schemas: _Schemas) -> Json:
    operation = route.operation
    summary, _, description = route.doc.strip().partition("\n\n")
    written: Json = {
        "operationId": f"{operation.tag}_{route.name}",
        "tags": [operation.tag],
        "summary": " ".join(summary.split()),
        "description": "\n".join(line.strip() for line in description.splitlines()),
        "parameters": list(_parameters(route)),
        "responses": {str(reply.status): _reply(reply, schemas) for reply in operation.replies}
        | {str(status): _refusal(route.path, status, schemas) for status in sorted(_statuses(route))}
        | {"default": _error(route.path, "Any other error.", schemas)},
        "security": _security(route),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": schemas.of(operation.body, "validation")}}
        written["requestBody"] = {"required": operation.body_required, "content": content}
    return {name: value for name, value in written.items() if value or name == "security"}


def _security(route: Described) -> list[Json]:
    schemes = ["bearer", "apiKey"] + ["ticket"] * route.operation.ticket
    roles = [] if route.scope is None else [route.scope]
    return [{scheme: roles} for scheme in schemes] if route.secured else []


def _parameters(route: Described) -> Iterator[Json]:
    operation = route.operation
    for name in _NAMED.findall(route.path):
        yield {"name": name, "in": "path", "required": True, "description": operation.path[name], "schema": {"type": "string"}}
    if operation.query is not None:
        yield from _query(operation.query)
    for name, description in operation.headers.items():
        form = {"pattern": _FORMS[name]} if name in _FORMS else {}
        yield {"name": name, "in": "header", "description": description, "schema": {"type": "string", **form}}


def _query(model: type[BaseModel]) -> Iterator[Json]:
    """One parameter per field. Such models are flat, so what their schemas refer to is put in its place."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in schema["properties"].items():
        shape = _optional(_resolved(field, definitions))
        described = {"description": text} if (text := shape.pop("description", None)) else {}
        yield {"name": name, "in": "query", "required": name in schema.get("required", ()), **described, "schema": shape}


def _resolved(shape: Any, definitions: Json) -> Any:
    if isinstance(shape, list):
        return [_resolved(each, definitions) for each in shape]
    if not isinstance(shape, dict):
        return shape
    if reference := shape.get("$ref"):
        return _resolved(definitions[reference.rpartition("/")[2]], definitions)
    return {key: _resolved(value, definitions) for key, value in shape.items()}


def _optional(shape: Json) -> Json:
    """A parameter is left out, never null."""
    members = [each for each in shape.pop("anyOf", []) if each != {"type": "null"}]
    if shape.get("default", ...) in (None, [], ""):
        del shape["default"]
    about = {key: value for key, value in shape.items() if key != "title"}
    return {**members[0], **about} if len(members) == 1 else {**about, **({"anyOf": members} if members else {})}


def _reply(reply: Reply, schemas: _Schemas) -> Json:
    written: Json = {"description": reply.description}
    if reply.headers:
        written["headers"] = {name: {"description": text, "schema": {"type": "string"}} for name, text in reply.headers.items()}
    if reply.media is not None:
        written["content"] = {media: _content(media, reply.model, schemas) for media in (reply.media, reply.also) if media}
    return written


def _content(media: str, model: type[BaseModel] | None, schemas: _Schemas) -> Json:
    """OpenAPI 3.1 has no words for the events of a stream. A schema would be taken for that of each."""
    if media == EVENT_STREAM:
        return {}
    return {"schema": {"type": "string"} if model is None else schemas.of(model, "serialization")}


_BODY = (400, 413, 415)


def _statuses(route: Described) -> set[int]:
    operation: Operation = route.operation
    statuses = set(operation.refusals)
    if route.secured:
        statuses.add(401)
    if route.scope is not None:
        statuses.add(403)
    if _NAMED.search(route.path):
        statuses.add(404)
    if operation.query is not None:
        statuses.add(400)
    if operation.body is not None:
        statuses.update((*_BODY, 422) if route.path.startswith(NATIVE) else _BODY)
    return statuses


def _refusal(path: str, status: int, schemas: _Schemas) -> Json:
    described = _error(path, HTTPStatus(status).phrase + ".", schemas)
    if status in (429, 503):
        wait = {"description": "Seconds after which another try makes sense.", "schema": {"type": "string"}}
        described["headers"] = {"Retry-After": wait}
    return described


def _error(path: str, description: str, schemas: _Schemas) -> Json:
    model = NativeError if path.startswith(NATIVE) else OpenAIError
    return {"description": description, "content": {"application/json": {"schema": schemas.of(model, "serialization")}}}
