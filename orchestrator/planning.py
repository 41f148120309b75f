"""What a submission runs: the catalog's entry for its model, or a plan that it brought, checked as the configuration's are."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, count
from typing import Any

import msgspec
from pydantic import ValidationError

from orchestrator.catalog import Catalog, ModelEntry, Resolved
from orchestrator.engine import Submission
from orchestrator.errors import InvalidRequest, ModelNotFound
from orchestrator.nesting import nested_deeper
from orchestrator.plans.check import Mistake
from orchestrator.plans.children import ChildLoop
from orchestrator.plans.plan import Plan
from orchestrator.plans.steps import Child
from orchestrator.tools import config as tools
from orchestrator.tools.config import ToolConfig

MAX_DEPTH = 20
"""Of steps in steps."""

MAX_STEPS = 500
"""In one plan that came with a request."""

MAX_BYTES = 256 * 1024
"""Of such a plan: to look at one takes time in which nobody else is served."""


class PlanInvalid(InvalidRequest):
    """The plan is not valid."""

    code = "invalid_plan"


class Planner:
    """`upstreams` are the names of those that there are."""

    def __init__(self, catalog: Catalog, upstreams: Collection[str], known_tools: Mapping[str, ToolConfig]) -> None:
        self._catalog = catalog
        self._upstreams = upstreams
        self._tools = known_tools

    def resolve(self, submission: Submission) -> Resolved:
        """Raises ModelNotFound, PlanInvalid; the `param` of the latter is the path of the mistake, from the plan's root."""
        if submission.plan is None:
            resolved = self._catalog.resolve(submission.model)
        else:
            entry = ModelEntry(plan=self._plan(submission.plan))
            resolved = Resolved(submission.model, submission.model, entry)
        if submission.approve_first:
            resolved = _approved_first(resolved)
        plan, choices = resolved.entry.plan, submission.body.get("n")
        if plan is not None and not plan.single and isinstance(choices, int) and choices > 1:
            raise InvalidRequest("This model is a plan of several steps, which gives one answer: leave 'n' out.", param="n")
        return resolved

    def _plan(self, given: Mapping[str, Any]) -> Plan:
        if nested_deeper(given, MAX_DEPTH * 3):
            raise PlanInvalid(f"The plan has steps in steps more than {MAX_DEPTH} deep.", param="")
        if len(msgspec.json.encode(given)) > MAX_BYTES:
            raise PlanInvalid(f"The plan is longer than {MAX_BYTES} bytes.", param="")
        try:
            plan = Plan.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise _invalid(tuple(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")) from None
        for path, text in self._mistakes(plan):
            raise _invalid(path, text)
        try:
            return self._catalog.whole(plan, "")
        except ChildLoop as loop:
            raise _invalid((), f"is a step of itself: {loop}") from None

    def _mistakes(self, plan: Plan) -> Iterator[Mistake]:
        if len(plan.nodes) > MAX_STEPS:
            yield (), f"has more than {MAX_STEPS} steps"
        yield from plan.mistakes()
        for node, agent in plan.agents():
            for upstream in agent.upstream:
                if upstream not in self._upstreams:
                    yield (*node.path, "upstream"), f"there is no upstream '{upstream}'"
            for number, tool in enumerate(agent.tools):
                if not tools.known(tool, self._tools):
                    yield (*node.path, "tools", str(number)), f"there is no tool '{tool}'"
        for node in plan.root.walk():
            if isinstance(node.spec, Child):
                yield from self._child(node.path, node.spec)

    def _child(self, path: tuple[str, ...], child: Child) -> Iterator[Mistake]:
        if child.type is not None:
            yield (*path, "type"), "only the configuration may name workflows of your own workers; name a model instead"
        elif child.model is not None:
            try:
                self._catalog.resolve(child.model)
            except ModelNotFound as error:
                yield (*path, "model"), error.message


def _approved_first(resolved: Resolved) -> Resolved:
    """With an approval in front of the plan, whose own steps keep their names. What the cache has was approved by nobody."""
    plan = resolved.entry.plan
    if plan is None:
        raise InvalidRequest("This model is a workflow of your own workers, which ask for approvals themselves.")
    names = {node.local for node in plan.root.walk()}
    approval = {"name": _free("begin", names), "action": "begin", "reason": "The request asks for an approval."}
    steps = [{"approval": approval}, plan.kept()]
    whole = Plan.model_validate({"sequential": {"name": _free("approved", names), "steps": steps}})
    return msgspec.structs.replace(resolved, entry=resolved.entry.model_copy(update={"plan": whole, "cache": None}))


def _free(name: str, taken: Collection[str]) -> str:
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(free for free in names if free not in taken)


def _invalid(path: tuple[str, ...], text: str) -> PlanInvalid:
    where = ".".join(path)
    return PlanInvalid(f"{where}: {text}" if where else f"The plan {text}", param=where)
