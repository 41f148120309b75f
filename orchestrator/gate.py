"""Gates: what those who control a run want of the process that carries its plan out, and the run's own word that it was heard."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.agents.job import Stop


class Gate:
    """Whether a run is to stand still, or to stop, and what was decided about what it waits for."""

    def __init__(self) -> None:
        self.pause: dict[str, str | None] | None = None
        self.resumed: dict[str, str | None] = {}
        self.count = 0
        self.stop: Stop | None = None
        self.decisions: dict[str, dict[str, Any]] = {}
        self.changed = asyncio.Event()

    @property
    def open(self) -> bool:
        return self.pause is None and self.stop is None

    def notify(self) -> None:
        self.changed.set()


class Gates:
    """Those of all runs whose plans are carried out in this process. Methods return False for a run that is not here."""

    def __init__(self) -> None:
        self._gates: dict[str, Gate] = {}

    def open(self, run_id: str) -> Gate:
        """The run's, from now until it is closed: its plan is carried out here."""
        gate = self._gates[run_id] = Gate()
        return gate

    def close(self, run_id: str, gate: Gate) -> None:
        if self._gates.get(run_id) is gate:
            del self._gates[run_id]

    def pause(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run stand still at its next safe point."""
        if (gate := self._gates.get(run_id)) is None:
            return False
        gate.pause = {"reason": reason, "by": by}
        gate.count += 1
        gate.notify()
        return True

    def resume(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run go on."""
        if (gate := self._gates.get(run_id)) is None:
            return False
        gate.pause, gate.resumed = None, {"reason": reason, "by": by}
        gate.notify()
        return True

    def stop(self, run_id: str, stop: Stop) -> bool:
        """Stop the run where no agent works for it."""
        if (gate := self._gates.get(run_id)) is None:
            return False
        gate.stop = gate.stop or stop
        gate.notify()
        return True

    def decide(self, run_id: str, decision: dict[str, Any]) -> bool:
        """Let the run know of a decision that its log has."""
        if (gate := self._gates.get(run_id)) is None:
            return False
        gate.decisions[decision["approval_id"]] = decision
        gate.notify()
        return True
