"""What a request says of its model's cache, and what its answer says: `Cache-Control` in, `X-Cache` out."""

from __future__ import annotations

from typing import Literal

from multidict import MultiMapping

from orchestrator.catalog import ModelEntry
from orchestrator.engine import CacheUse
from orchestrator.runs import Run

SENT = {
    "Cache-Control": "Of a model with a cache: `no-cache` asks for a new answer, which others are then given; `no-store` for one "
    "that neither comes from the cache nor goes there."
}
_FOUND = (
    "Only of a model with a cache. `hit`: the same was answered before, and this is that answer. `semantic`: something that "
    "means the same was. `miss`: it is a new one."
)
TOLD = {"X-Cache": _FOUND, "X-Headgate-Cache": "The same, for those behind a proxy that has a cache of its own."}

Found = Literal["hit", "semantic", "miss"]


def cache_use(headers: MultiMapping[str]) -> CacheUse:
    """By `Cache-Control` of a request (RFC 9111, 5.2.1). What else it can say is nothing to a cache that knows no staleness."""
    asked = {directive.strip().lower() for line in headers.getall("Cache-Control", ()) for directive in line.split(",")}
    if "no-store" in asked:
        return "avoid"
    return "renew" if asked & {"no-cache", "max-age=0"} else "use"


def cache_found(entry: ModelEntry, run: Run) -> Found | None:
    """What the answer says; nothing, where the model has no cache."""
    if entry.cache is None:
        return None
    if run.cached is None:
        return "miss"
    return "hit" if run.cached.score is None else "semantic"
