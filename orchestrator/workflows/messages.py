"""What a run's workflow and its activities tell each other. References, not content: all of it stands in Temporal's history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RUN_AGENT = "run_agent"
RUN_BRANCHES = "run_branches"
CHOOSE = "choose"
TELL = "tell"
SAY = "say"
ASK_APPROVAL = "ask_approval"
EXPIRE_APPROVAL = "expire_approval"
LOOK = "look"
CHILD_INPUT = "child_input"
CHILD_OUTPUT = "child_output"
END_PLAN = "end_plan"
END_RUN = "end_run"


LONG_HISTORY = 2000
"""Events after which an execution is continued as another; Temporal warns at 10,240."""


@dataclass
class PauseInput:
    """Who asked to pause or to resume, and why."""

    reason: str | None
    by: str | None


@dataclass
class RunInput:
    """What a run's workflow is given. `plan` is an outline; the request stays beside the log.

    The rest is for a workflow that goes on where another of the same run left off: the top-level step that is next, what has
    finished of the whole (a numerator and a denominator), how much was counted (ranks and appends of progress), and whether it is
    to stand still: of `pauses`, so many are answered with word that it goes on.
    """

    run_id: str
    plan: dict[str, Any]
    heartbeat_s: float
    generation: int = 0
    deadline_ms: int | None = None
    next_step: int = 0
    finished: tuple[int, int] = (0, 1)
    ranks: int = 0
    told: int = 0
    pause: PauseInput | None = None
    resumed: PauseInput | None = None
    pauses: int = 0
    answered: int = 0
    long_history: int = LONG_HISTORY


@dataclass
class StepInput:
    """A step of the run's plan, by its name, done for the `visit`-th time."""

    run_id: str
    step: str
    visit: int = 1


@dataclass
class AgentInput:
    """An agent's visit. `rank` outranks all that the run's workflow has asked for before."""

    run_id: str
    step: str
    final: bool
    heartbeat_s: float
    rank: int
    visit: int = 1
    fresh: bool = False


@dataclass
class BranchesInput:
    """A parallel step as a whole. `place` is where it stands, `finished` and `weight` are fractions of the whole run."""

    run_id: str
    step: str
    heartbeat_s: float
    rank: int
    place: dict[str, Any]
    finished: tuple[int, int]
    weight: tuple[int, int]
    fresh: bool = False


@dataclass
class TellInput:
    """Progress, as the append of this number of those that the run's workflow makes. `rank` outranks earlier workflows."""

    run_id: str
    number: int
    rank: int
    progress: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SayInput:
    """An event that the workflow says, under a name that makes saying it twice harmless."""

    run_id: str
    type: str
    payload: dict[str, Any]
    once: str
    state: str


@dataclass
class ChildOutput:
    """What a workflow that is a step brought."""

    run_id: str
    step: str
    result: Any
    visit: int = 1


@dataclass
class PlanEnd:
    """What a run's plan came to."""

    run_id: str
    result: dict[str, Any]


@dataclass
class EndInput:
    """How to end a run that no plan ended: `failure` or `reason`, or the `result` of a user's workflow that completed."""

    run_id: str
    state: str
    failure: dict[str, Any] | None = None
    reason: str | None = None
    result: Any = None
