"""A `StepContext` that plays a script: what each step comes to, when, and what it was asked. Time does not pass by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from orchestrator.errors import Failure
from orchestrator.plans.interpreter import Branch, Interpreter, StepContext, StepResult, Verdict, interpret
from orchestrator.plans.plan import Plan
from orchestrator.plans.progress import Place, Progress, Share
from orchestrator.plans.tree import Node
from orchestrator.runs import RunState

DONE = StepResult(RunState.COMPLETED)
PAUSED = StepResult(RunState.PAUSED)
CANCELLED = StepResult(RunState.CANCELLED, reason="enough")
FAILED = StepResult(RunState.FAILED, failure=Failure("broken", "It broke."))

HELD = "held"
"""Instead of a result: the step goes on until it is released."""


def plan(text: str) -> Plan:
    return Plan.model_validate(yaml.safe_load(text))


class Acting(StepContext):
    """`results` are, by step, what it comes to each time; a step that is not named completes."""

    def __init__(self, results: Mapping[str, Sequence[Any]] = {}) -> None:
        self.results = {name: list(each) for name, each in results.items()}
        self.asked: list[str] = []
        self.told: list[Progress] = []
        self.released: dict[str, asyncio.Future[StepResult]] = {}
        self.whole = False
        self._turned = asyncio.Event()

    async def act(self, plan: Plan) -> StepResult:
        return await interpret(plan, self)

    def facts(self) -> list[tuple[str, str, float]]:
        return [(one.step_name, one.status, round(one.progress, 3)) for one in self.told]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what the context has seen."""
        async with asyncio.timeout(5.0):
            while not holds():
                self._turned.clear()
                await self._turned.wait()

    async def held(self, count: int) -> None:
        """So many steps go on until they are released."""
        await self.until(lambda: len(self.released) >= count)

    def release(self, step: str, result: StepResult = DONE) -> None:
        self.released[step].set_result(result)

    async def checkpoint(self, step: str) -> None:
        self.asked.append(f"checkpoint {step}")

    async def run_agent(self, node: Node, visit: int, *, final: bool) -> StepResult:
        self.asked.append(f"run {node.name} {visit}{' final' if final else ''}")
        result: StepResult = await self._next(node.name, DONE)
        return result

    async def run_whole(self, node: Node, place: Place, share: Share) -> StepResult | None:
        return await Interpreter(self).branches(node, place, share) if self.whole else None

    async def choose(self, node: Node) -> Branch:
        branch: Branch = await self._next(node.name, "then")
        return branch

    async def approve(self, node: Node, visit: int) -> Verdict:
        self.asked.append(f"approve {node.name} {visit}")
        verdict: Verdict = await self._next(node.name, Verdict(True))
        return verdict

    async def run_child(self, node: Node, visit: int) -> StepResult:
        self.asked.append(f"child {node.name} {visit}")
        result: StepResult = await self._next(node.name, DONE)
        return result

    async def tell(self, progress: Sequence[Progress]) -> None:
        await asyncio.sleep(0)
        self.told += progress
        self._turned.set()

    @property
    def goes_on(self) -> bool:
        return False

    @property
    def long(self) -> bool:
        return True

    async def renew(self, next_step: int, share: Share) -> None:
        self.asked.append(f"renew {next_step} {share.finished}")

    async def sleep(self, seconds: float) -> None:
        self.asked.append(f"sleep {seconds:g}")

    def random(self) -> float:
        return 0.5

    async def _next(self, step: str, otherwise: Any) -> Any:
        waiting = self.results.get(step)
        result = waiting.pop(0) if waiting else otherwise
        if isinstance(result, Exception):
            raise result
        if result != HELD:
            return result
        self.released[step] = asyncio.get_running_loop().create_future()
        self._turned.set()
        try:
            return await self.released[step]
        except asyncio.CancelledError:
            self.asked.append(f"cancelled {step}")
            raise
