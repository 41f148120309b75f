"""What models that are teams promise, for `manifest.py`: the plans that ship, through every kind of client."""

from __future__ import annotations

from collections.abc import Mapping

from compat_tests.promised import Promised

PLANS: Mapping[str, Promised] = {
    "plans.answer": Promised(
        "A team answers as a model does: one text, one finish reason, and the usage of all its agents.", "orchestration §1"
    ),
    "plans.others": Promised("The other agents are seen by who asks, as reasoning and as events.", "design §6"),
    "plans.progress": Promised("Progress never falls, counts each branch, and ends at 1.", "orchestration §2"),
    "plans.approval": Promised(
        "A turn that needs a decision ends with a tool call, whose result goes on with the same run.", "orchestration §3"
    ),
    "plans.decided": Promised("At every door a decision can be made, either way, once.", "orchestration §3"),
    "plans.pause": Promised("A pause in a parallel step costs nothing that had finished.", "orchestration §3"),
    "plans.cancel": Promised("Cancelling a parallel step closes every upstream's socket.", "orchestration §3, P14"),
    "plans.client": Promised("headgate: the client follows a team and decides for it.", "native §7"),
    "plans.command": Promised("headgate: the command shows a team at work, and what it waits for.", "native §7"),
    "plans.tools": Promised("A team's tools and its client's go together.", "orchestration §1"),
}
