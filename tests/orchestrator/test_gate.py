"""Gates: what those who control a run want reaches every attempt at it in this process, and at once."""

from __future__ import annotations

import asyncio

from orchestrator.agents.job import Stop
from orchestrator.gate import Gates


def test_a_run_that_is_not_here() -> None:
    gates = Gates()
    assert not gates.pause("task-1", None, None)
    gates.close("task-1", gates.open("task-1"))
    assert not gates.stop("task-1", Stop("cancelled"))


def test_two_attempts_in_one_process_both_hear() -> None:
    """The one that was given up does not know it yet. The gate of the second used to take the place of the first's."""
    gates = Gates()
    old, new = gates.open("task-1"), gates.open("task-1")
    assert gates.stop("task-1", Stop("cancelled", "enough"))
    assert old.stop == new.stop == Stop("cancelled", "enough")
    gates.close("task-1", old)
    assert gates.decide("task-1", {"approval_id": "ok", "approved": True})
    assert (list(old.decisions), list(new.decisions)) == ([], ["ok"])


async def test_no_change_is_missed_between_looking_and_waiting() -> None:
    """Whoever waited cleared a common event first, and with it what had been said since it had looked; or another waiter did."""
    gates = Gates()
    gate = gates.open("task-1")
    first, second = gate.changed, gate.changed
    gates.pause("task-1", "lunch", "ann")
    later = gate.changed
    async with asyncio.timeout(1.0):
        await asyncio.gather(first.wait(), second.wait())
    assert not later.is_set()
    assert (gate.pause, gate.count) == ({"reason": "lunch", "by": "ann"}, 1)
    gates.resume("task-1", None, "ann")
    assert later.is_set()
    assert (gate.pause, gate.resumed) == (None, {"reason": None, "by": "ann"})
