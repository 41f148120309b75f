"""How a child is tied to our life: it gets its own stop signal when we are gone, also after kill -9.

On Linux, `setpriv` asks the kernel for a parent-death signal and then a shell checks that we are still its parent, because a
parent that died before the request was made is never reported. `exec` keeps the process id throughout. The kernel watches the
*thread* that started the child, so the event loop that starts children must run in a thread that lives as long as they do.
Elsewhere children are started plainly; after kill -9 they stay, and the next start on their data folder names them.

PostgreSQL refuses to run as root. As root it runs as an ordinary user instead, who may keep one right of root's: to get through
folders and read files (`dac_read_search`), because the data or the program can lie below somebody's private folder, and we do
not change permissions of what is not ours. It can gain no others. A container that was not given this right does without.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.embedded.backend import EmbeddedError, User

_CAP_DAC_READ_SEARCH = 1 << 2
_ONLY_WITH_PARENT = '[ "$PPID" = "$0" ] && exec "$@"'


def leashed(command: Sequence[str], stop_signal: signal.Signals, run_as: User | None) -> list[str]:
    """`command` so that it ends with this process and runs as `run_as`."""
    if sys.platform != "linux":
        return list(command)
    setpriv = shutil.which("setpriv", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if setpriv is None:
        raise EmbeddedError(
            "setpriv was not found; embedded backends need it to end together with Headgate. Install the package util-linux, "
            "or configure addresses instead."
        )
    death = ["--pdeathsig", stop_signal.name.removeprefix("SIG")]
    return [setpriv, *_as_user(run_as), *death, "--", "/bin/sh", "-c", _ONLY_WITH_PARENT, str(os.getpid()), *command]


def _as_user(user: User | None) -> list[str]:
    if user is None:
        return []
    options = [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--nnp"]
    kept = "-all,+dac_read_search" if _may_pass_private_folders() else "-all"
    return [*options, f"--inh-caps={kept}", f"--ambient-caps={kept}"]


def _may_pass_private_folders() -> bool:
    status = Path("/proc/self/status").read_text()
    permitted = next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm:"))
    return bool(int(permitted, 16) & _CAP_DAC_READ_SEARCH)
