"""The catalog: which plan a model name stands for. No I/O.

Entries are exact names, `prefix/*` (what follows the slash goes upstream) and `*` (anything else, name unchanged). An exact
name wins over a prefix, a longer prefix over a shorter one, and `*` comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat

from orchestrator.errors import ModelNotFound
from orchestrator.plans.plan import Plan


class ModelEntry(BaseModel):
    """What `models.<name>` of the configuration says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Plan
    durability: Literal["temporal", "none"] = Field(
        default="temporal",
        description="`temporal`: a lost worker is a pause. `none`: runs in the serving process; losing it ends the run.",
    )
    on_disconnect: Literal["cancel", "continue"] | NonNegativeFloat = Field(
        default="cancel",
        description="When the client that asked leaves: cancel the run, let it go on, or cancel after so many seconds.",
    )
    owned_by: str = Field(default="headgate", description="`owned_by` in `GET /v1/models`.")


class Resolved(msgspec.Struct, frozen=True):
    """A model name with the entry that serves it, and the name that goes upstream unless the plan sets one."""

    name: str
    upstream_model: str
    entry: ModelEntry


class Catalog:
    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._exact = {name: entry for name, entry in entries.items() if not name.endswith("*")}
        self._prefixes = sorted(
            ((name[:-1], entry) for name, entry in entries.items() if name.endswith("*")),
            key=lambda item: -len(item[0]),
        )

    def resolve(self, name: str) -> Resolved:
        """Raises ModelNotFound."""
        if entry := self._exact.get(name):
            return Resolved(name, name, entry)
        for prefix, entry in self._prefixes:
            if name.startswith(prefix) and len(name) > len(prefix):
                return Resolved(name, name[len(prefix) :], entry)
        raise ModelNotFound(f"The model '{name[:200]}' does not exist. GET /v1/models lists those that do.", param="model")

    def named(self) -> Iterator[tuple[str, ModelEntry]]:
        """Entries with an exact name, in the order of the configuration."""
        yield from self._exact.items()

    def patterns(self) -> Iterator[tuple[str, ModelEntry]]:
        """Entries that pass names through, as `(prefix, entry)`; the prefix of `*` is empty."""
        yield from self._prefixes
