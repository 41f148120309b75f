"""The catalog: which plan a model name stands for. No I/O.

Entries are exact names, `prefix/*` (what follows the slash goes upstream) and `*` (anything else, name unchanged). An exact
name wins over a prefix, a longer prefix over a shorter one, and `*` comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator

from orchestrator.cache.config import CacheConfig
from orchestrator.errors import ModelNotFound
from orchestrator.plans.children import ChildLoop, named_upstream, with_children
from orchestrator.plans.plan import Plan
from orchestrator.plans.steps import Child
from orchestrator.spending.config import ModelPrice, RunBudget


class UserWorkflow(BaseModel):
    """A Temporal workflow that somebody else's worker runs. Its Temporal id is the run's id."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(min_length=1, max_length=200, description="The workflow's type, as its worker registered it.")
    task_queue: str = Field(min_length=1, max_length=200, description="The task queue that its worker polls.")
    input: Literal["request", "query"] = Field(
        default="request",
        description="Its one argument: `request` is an object with run_id, model, query, messages, body, session_id, metadata; "
        "`query` is the text of the last user message.",
    )
    answers: str = Field(
        default="agent", pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="The `agent_id` whose text is the answer."
    )
    timeout_s: PositiveFloat = Field(default=86_400.0, description="The longest the workflow may take.")


class MemoryConfig(BaseModel):
    """How much of a session a model remembers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=4000, description="Of questions and answers together; the latest come first."
    )
    max_turns: Annotated[int, Field(ge=1, le=100)] = Field(default=10, description="So many earlier runs at most.")


class ModelEntry(BaseModel):
    """What `models.<name>` of the configuration says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plan: Plan | None = Field(default=None, description="What Headgate runs. Either this or `workflow`.")
    workflow: UserWorkflow | None = Field(default=None, description="What your own Temporal worker runs. Either this or `plan`.")
    durability: Literal["temporal", "none"] = Field(
        default="temporal",
        description="`temporal`: a lost worker is a pause. `none`: runs in the serving process; losing it ends the run.",
    )
    on_disconnect: Literal["cancel", "continue"] | NonNegativeFloat = Field(
        default="cancel",
        description="When the client that asked leaves: cancel the run, let it go on, or cancel after so many seconds.",
    )
    memory: MemoryConfig | None = Field(
        default=None,
        description="What earlier runs of the session said is put before the question, if the request has no conversation of its "
        "own. None: nothing is.",
    )
    timeout_s: PositiveFloat | None = Field(
        default=None, description="The longest a run may take, waiting included. None: as long as its steps may."
    )
    price: ModelPrice | None = Field(
        default=None, description="US dollars per million tokens. Without a price usage has no cost, and no budget in money."
    )
    budget: RunBudget | None = Field(default=None, description="What one run may use. A request may ask for less.")
    cache: CacheConfig | None = Field(default=None, description="None: every request is answered anew.")
    owned_by: str = Field(default="headgate", description="`owned_by` in `GET /v1/models`.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.plan is None) == (self.workflow is None):
            raise ValueError("needs either a plan or a workflow")
        if self.workflow is not None and self.durability == "none":
            raise ValueError("a workflow runs in Temporal, so its durability cannot be none")
        if self.workflow is not None and self.cache is not None:
            raise ValueError("only a plan's answers can be cached: what a workflow of your own does, nobody here knows")
        if self.workflow is not None and self.timeout_s is not None:
            raise ValueError("a workflow has its own timeout_s, under `workflow`")
        if self.workflow is not None and self.memory is not None:
            raise ValueError("only a plan can have a memory: a workflow of your own is told its session_id")
        if self.workflow is not None and self.budget is not None:
            raise ValueError("only a plan can have a budget: what a workflow of your own uses, nobody here can stop")
        if self.plan is not None and self.durability == "none" and self.plan.needs_temporal:
            raise ValueError("a plan with a workflow as a step runs in Temporal, so its durability cannot be none")
        if self.plan is not None and self.cache is not None and self.plan.needs_temporal and not self.cache.side_effects:
            raise ValueError("what a workflow of your own does, nobody here knows: caching its answers needs cache.side_effects")
        return self

    @property
    def answers(self) -> tuple[str, ...]:
        """The agents whose text is the answer; one of them speaks."""
        if self.plan is not None:
            return self.plan.answers
        return () if self.workflow is None else (self.workflow.answers,)


class Resolved(msgspec.Struct, frozen=True):
    """A model name with the entry that serves it, and the name that goes upstream unless the plan sets one."""

    name: str
    upstream_model: str
    entry: ModelEntry


class Catalog:
    """Plans have those of the models that are their steps filled in, where there are such models (the settings see to that)."""

    def __init__(self, entries: Mapping[str, ModelEntry]) -> None:
        self._set(entries)
        self._set({name: self._whole(name, entry) for name, entry in entries.items()})

    def _set(self, entries: Mapping[str, ModelEntry]) -> None:
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

    def _whole(self, name: str, entry: ModelEntry) -> ModelEntry:
        if entry.plan is None:
            return entry
        try:
            whole = self.whole(entry.plan, name)
        except (ModelNotFound, ChildLoop):
            return entry
        return entry if whole is entry.plan else entry.model_copy(update={"plan": whole})

    def whole(self, plan: Plan, name: str) -> Plan:
        """The plan of the model `name` with its children's. Raises ModelNotFound, ChildLoop."""
        return with_children(plan, self._as_step, (name,))

    def _as_step(self, name: str) -> Plan | Child:
        resolved = self.resolve(name)
        if resolved.entry.plan is not None:
            return named_upstream(resolved.entry.plan, resolved.upstream_model)
        workflow = resolved.entry.workflow
        assert workflow is not None
        return Child(type=workflow.type, task_queue=workflow.task_queue, timeout_s=workflow.timeout_s)

    def named(self) -> Iterator[tuple[str, ModelEntry]]:
        """Entries with an exact name, in the order of the configuration."""
        yield from self._exact.items()

    def patterns(self) -> Iterator[tuple[str, ModelEntry]]:
        """Entries that pass names through, as `(prefix, entry)`; the prefix of `*` is empty."""
        yield from self._prefixes
