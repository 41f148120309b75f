"""Runs the `headgate` command under cProfile, on the CPU clock of its thread: waiting for a busy machine is nobody's cost.

python -m bench.profiled OUTPUT serve --port 8080
"""

from __future__ import annotations

import cProfile
import sys
import time

from headgate.cli import main

if __name__ == "__main__":
    output, *sys.argv[1:] = sys.argv[1:]
    profile = cProfile.Profile(time.thread_time)
    try:
        profile.runcall(main)
    finally:
        profile.dump_stats(output)
