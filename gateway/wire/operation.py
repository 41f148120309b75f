"""What is said of a route besides its path, method and rule: the models of what it takes and gives. No I/O.

Its summary and description are the first paragraph and the rest of its handler's docstring. `openapi.py` makes a document of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from orchestrator.runs import Scope

EVENT_STREAM = "text/event-stream"


class Reply(NamedTuple):
    """An answer that is not an error. Without a model its body, if its `media` says that it has one, is plain text."""

    status: int
    description: str
    model: type[BaseModel] | None = None
    media: str | None = "application/json"
    headers: Mapping[str, str] = {}
    also: str | None = None
    """Another media type that a client may get instead, by asking for it."""


class Operation(NamedTuple):
    """`headers` and `path` describe the request's by name. `refusals` are statuses besides those that follow from the rest:
    401 and 403 for routes that want a key, 404 for those that name something, 400 for a query or a body, 413, 415 and 422 for a
    body.
    """

    tag: str
    replies: tuple[Reply, ...]
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_required: bool = True
    headers: Mapping[str, str] = {}
    path: Mapping[str, str] = {"id": "The task's id."}
    refusals: tuple[int, ...] = ()
    ticket: bool = False
    """Besides a key, a stream ticket in the query is good."""


class Described(NamedTuple):
    """A route as the document needs it. `path` is written with plain names: `/api/v1/tasks/{id}`."""

    method: str
    path: str
    name: str
    doc: str
    secured: bool
    scope: Scope | None
    operation: Operation
