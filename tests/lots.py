"""How pytest's workers share the tests: in lots, each of which one worker runs from its first test to its last.

A file is a lot. Larger ones keep apart what must not meet, or together what is dear to set up:

* `rough`: tests that start, kill, freeze and time whole processes. Side by side they would measure each other, so they have a
  worker of their own, and everybody else makes way for it.
* `split` and `whole`: the tests of compatibility, once per shape, so that each shape's servers are started once.

They are begun first, so that no worker is left alone with one of them at the end. Every worker has backends of its own (the
fixture `backends`), and shares nothing with the others but the machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

LOTS: Sequence[tuple[str, re.Pattern[str]]] = (
    ("rough", re.compile(r"tests/rough/|tests/orchestrator/test_embedded\.py::TestLifetimes")),
    ("split", re.compile(r"compat_tests/.*[\[-]split[]-]")),
    ("whole", re.compile(r"compat_tests/.*[\[-]whole[]-]")),
)

POLITE = 5
"""The niceness of tests that make way."""


def lot(test: str) -> str:
    """The lot of a test, by its id."""
    return next((name for name, pattern in LOTS if pattern.match(test)), test.partition("::")[0])


def make_way(test: str) -> None:
    """Before any test of a worker: from the first one on that measures nothing, it has the processors that others leave."""
    if lot(test) != "rough":
        os.setpriority(os.PRIO_PROCESS, 0, POLITE)


class Lots(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return lot(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        large = next((name for name, _ in LOTS if name in self.workqueue), None)
        if large is not None:
            self.workqueue.move_to_end(large, last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """The test that the worker died of, if it did. It is not tried again, to kill one worker after the other."""
        lost = [(unit, test) for unit in self.assigned_work[node].values() for test, done in unit.items() if not done]
        for unit, test in lost[:1]:
            unit[test] = True
        super().remove_node(node)
        return lost[0][1] if lost else None
