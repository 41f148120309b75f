"""Gates: what those who control a run want of the process that carries its plan out, and the run's own word that it was heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
        """Of the next change; a waiter takes it before it looks whether it has to wait, so that it misses none."""

    @property
    def open(self) -> bool:
        return self.pause is None and self.stop is None

    def notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Gates:
    """Those of all runs whose plans are carried out in this process. Methods return False for a run that is not here.

    A run may have several: an attempt that was given up need not know it yet when the next one begins.
    """

    def __init__(self) -> None:
        self._gates: dict[str, list[Gate]] = {}

    def open(self, run_id: str) -> Gate:
        """The run's, from now until it is closed: its plan is carried out here."""
        gate = Gate()
        self._gates.setdefault(run_id, []).append(gate)
        return gate

    def close(self, run_id: str, gate: Gate) -> None:
        gates = self._gates[run_id]
        gates.remove(gate)
        if not gates:
            del self._gates[run_id]

    def pause(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run stand still at its next safe point."""

        def pause(gate: Gate) -> None:
            gate.pause = {"reason": reason, "by": by}
            gate.count += 1

        return self._each(run_id, pause)

    def resume(self, run_id: str, reason: str | None, by: str | None) -> bool:
        """Let the run go on."""

        def resume(gate: Gate) -> None:
            gate.pause, gate.resumed = None, {"reason": reason, "by": by}

        return self._each(run_id, resume)

    def stop(self, run_id: str, stop: Stop) -> bool:
        """Stop the run where no agent works for it."""

        def halt(gate: Gate) -> None:
            gate.stop = gate.stop or stop

        return self._each(run_id, halt)

    def decide(self, run_id: str, decision: dict[str, Any]) -> bool:
        """Let the run know of a decision that its log has."""

        def decide(gate: Gate) -> None:
            gate.decisions[decision["approval_id"]] = decision

        return self._each(run_id, decide)

    def _each(self, run_id: str, act: Callable[[Gate], None]) -> bool:
        gates = self._gates.get(run_id, [])
        for gate in gates:
            act(gate)
            gate.notify()
        return bool(gates)
