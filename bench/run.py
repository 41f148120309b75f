"""Measures Headgate beside the ceiling of its stack, in one go: `make bench`, or `python -m bench.run`.

Servers, with all their child processes, have one core; the upstream and the load have the other. Targets take turns within
each scenario, several rounds, and the median counts, so that a busy moment of the machine hits all of them. Prints what was
promised beside what was measured, and writes everything to `bench/results/`.

Linux only (affinity, /proc). The exit code tells whether every promise that was measured is kept.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import pstats
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.processes import on_core
from bench.report import check_promises, measures_table, medians, promises_table
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import Cores, Target, serving

_RESULTS = Path(__file__).parent / "results"
_TARGETS = ("direct", "ceiling", "none", "durable")
_VERSIONS = ("aiohttp", "asyncpg", "grpcio", "msgspec", "redis", "temporalio", "uvloop")
_WARM_UP = 16


def main() -> int:
    arguments = _arguments()
    cores = Cores.of_machine()
    _RESULTS.mkdir(exist_ok=True)
    began = datetime.now(UTC)
    path = _RESULTS / f"{began:%Y-%m-%dT%H%M%S}{'-quick' if arguments.quick else ''}.json"
    profile = path.with_suffix(".profile") if arguments.profile else None
    reports = _measure_all(arguments, cores, profile)
    measured = medians(reports)
    promises = check_promises(measured)
    print(measures_table(measured), promises_table(promises), sep="\n")
    result = {
        "began": began.isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench.run", *sys.argv[1:]]),
        "commit": _commit(),
        "machine": _machine(cores),
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _VERSIONS},
        "promises": promises,
        "reports": reports,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{path}")
    if profile is not None:
        _show_profile(profile)
    return 0 if all(promise["kept"] is not False for promise in promises) else 1


def _measure_all(arguments: argparse.Namespace, cores: Cores, profile: Path | None) -> list[dict[str, Any]]:
    """Reports of every scenario. What the servers had to say is printed, because their logs go with their folder."""
    scenarios = [scenario for scenario in SCENARIOS if not arguments.only or scenario.name in arguments.only]
    names = [name for name in _TARGETS if name in arguments.targets]
    rounds = 1 if arguments.quick else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        try:
            with serving(names, Path(folder), cores, profile) as targets:
                measured = (_measure(scenario, targets, cores, rounds, arguments.quick) for scenario in scenarios)
                return [report for reports in measured for report in reports]
        finally:
            for log in sorted(Path(folder).glob("*.log")):
                if text := log.read_text(errors="replace").strip():
                    print(f"--- {log.name} (end)\n{text[-2000:]}\n", file=sys.stderr)


def _measure(scenario: Scenario, targets: Mapping[str, Target], cores: Cores, rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Reports of all rounds, the targets taking turns."""
    taking_part = [targets[name] for name in scenario.targets if name in targets]
    concurrency, requests = scenario.scaled(quick)
    for target in taking_part:
        _load(scenario, target, cores, min(concurrency, _WARM_UP), min(requests, _WARM_UP), model="mock-20-0")
    reports = []
    for turn in range(rounds):
        for target in taking_part:
            print(f"{scenario.name}, {target.name}, round {turn + 1} of {rounds}", file=sys.stderr)
            report = _load(scenario, target, cores, concurrency, requests)
            reports.append({"scenario": scenario.name, "target": target.name, "round": turn + 1} | report)
    return reports


def _load(
    scenario: Scenario, target: Target, cores: Cores, concurrency: int, requests: int, model: str | None = None
) -> dict[str, Any]:
    arguments = {
        "--url": target.url,
        "--model": target.prefix + (model or scenario.model),
        "-c": str(concurrency),
        "-n": str(requests),
        "--ramp": str(scenario.ramp_s),
        "--pid": str(target.pid),
    }
    command = [sys.executable, "-m", "bench.load", *(part for pair in arguments.items() for part in pair)]
    with on_core(cores.load):
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    report: dict[str, Any] = json.loads(output)
    return report


def _commit() -> str:
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    return git("rev-parse", "HEAD") + ("-modified" if git("status", "--porcelain", "--untracked-files=no") else "")


def _machine(cores: Cores) -> dict[str, Any]:
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "server_core": cores.servers,
        "load_core": cores.load,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
    }


def _show_profile(path: Path) -> None:
    """cProfile's file is shown; py-spy's is for speedscope."""
    if path.read_bytes()[:1] != b"{":
        pstats.Stats(str(path)).sort_stats("tottime").print_stats(45)
    print(path)


def _listed(text: str) -> list[str]:
    return text.split(",")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small round of everything, to see that it works")
    parser.add_argument("--only", type=_listed, default=[], help=f"of {','.join(scenario.name for scenario in SCENARIOS)}")
    parser.add_argument("--targets", type=_listed, default=list(_TARGETS), help=f"of {','.join(_TARGETS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="py-spy if it is installed, else cProfile; distorts the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
