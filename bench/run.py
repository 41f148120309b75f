"""Measures Headgate beside the ceiling of its stack, in one go: `make bench`, or `python -m bench.run`.

Chat completions are measured beside the ceiling, and the native doors beside each other. Servers, with all their child
processes, have one core; the upstream and the load have the other. Targets take turns within each scenario, several rounds, and
the median counts, so that a busy moment of the machine hits all of them. Prints what was promised beside what was measured, and
writes everything to `bench/results/`.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.processes import on_core
from bench.report import check_promises, measures_table, medians, promises_table
from bench.scenarios import CHATS, DOORS, PLANS, VIEWS, Chats, Plans, Views, Way
from bench.servers import Cores, Target, serving

_RESULTS = Path(__file__).parent / "results"
_CHAT_TARGETS = ("direct", "ceiling", "none", "durable", "guarded")
_TARGETS = (*_CHAT_TARGETS, *DOORS)
_SCENARIOS = tuple(scenario.name for scenario in (*CHATS, *VIEWS, *PLANS))
_VERSIONS = ("aiohttp", "asyncpg", "grpcio", "msgspec", "redis", "temporalio", "uvloop")
_WARM_UP = 16
_WARM_UP_MODEL = "mock-20-0-200"

Report = dict[str, Any]
Measure = Callable[[], Report]


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


def _measure_all(arguments: argparse.Namespace, cores: Cores, profile: Path | None) -> list[Report]:
    """Reports of every scenario. The doors have a Headgate of their own, whose memory nobody has stretched before."""
    chats = [scenario for scenario in CHATS if scenario.name in arguments.only]
    views = [scenario for scenario in VIEWS if scenario.name in arguments.only]
    reports: list[Report] = []
    if chats and (names := [name for name in _CHAT_TARGETS if name in arguments.targets]):
        with _servers(names, cores, profile) as targets:
            for chat in chats:
                reports += _take_turns(chat.name, _chats(chat, targets, cores, arguments.quick), arguments)
    if views and (doors := [name for name in DOORS if name in arguments.targets]):
        with _servers(["native"], cores, profile) as targets:
            for view in views:
                reports += _take_turns(view.name, _views(view, targets["native"], doors, cores, arguments.quick), arguments)
    for plan in (scenario for scenario in PLANS if scenario.name in arguments.only):
        with _servers(["native"], cores, profile) as targets:
            reports += _take_turns(plan.name, _plans(plan, targets["native"], cores, arguments.quick), arguments)
    return reports


@contextmanager
def _servers(names: Sequence[str], cores: Cores, profile: Path | None) -> Iterator[Mapping[str, Target]]:
    """What the servers had to say is printed, because their logs go with their folder."""
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        try:
            with serving(names, Path(folder), cores, profile) as targets:
                yield targets
        finally:
            for log in sorted(Path(folder).glob("*.log")):
                if text := log.read_text(errors="replace").strip():
                    print(f"--- {log.name} (end)\n{text[-2000:]}\n", file=sys.stderr)


def _take_turns(scenario: str, measures: Mapping[str, Measure], arguments: argparse.Namespace) -> Iterator[Report]:
    """Reports of all rounds, the targets taking turns."""
    rounds = 1 if arguments.quick else arguments.rounds
    for turn in range(rounds):
        for target, measure in measures.items():
            print(f"{scenario}, {target}, round {turn + 1} of {rounds}", file=sys.stderr)
            yield {"scenario": scenario, "target": target, "round": turn + 1} | measure()


def _chats(scenario: Chats, targets: Mapping[str, Target], cores: Cores, quick: bool) -> Mapping[str, Measure]:
    """The load on each target, which is warm by then."""
    concurrency, requests = scenario.scaled(quick)
    measures: dict[str, Measure] = {}
    for name in scenario.targets:
        if (target := targets.get(name)) is not None:
            _load(scenario, target, cores, min(concurrency, _WARM_UP), min(requests, _WARM_UP), "mock-20-0")
            measures[name] = partial(_load, scenario, target, cores, concurrency, requests, scenario.model)
    return measures


def _load(scenario: Chats, target: Target, cores: Cores, concurrency: int, requests: int, model: str) -> Report:
    options = {
        "--url": target.url,
        "--model": target.prefix + model,
        "-c": concurrency,
        "-n": requests,
        "--ramp": scenario.ramp_s,
        "--pid": target.pid,
    }
    return _run("load", options, cores)


def _views(scenario: Views, target: Target, doors: Sequence[str], cores: Cores, quick: bool) -> Mapping[str, Measure]:
    """Each way to watch, through a door that is warm by then."""
    viewers, times = scenario.scaled(quick)
    measures: dict[str, Measure] = {}
    for way in scenario.ways:
        if way.door in doors:
            _watch(Way("warm-up", way.door, _WARM_UP_MODEL, ""), target, cores, _WARM_UP_MODEL, _WARM_UP, 0)
            measures[way.name] = partial(_watch, way, target, cores, way.quick if quick else way.model, viewers, times)
    return measures


def _watch(way: Way, target: Target, cores: Cores, model: str, viewers: int, times: int) -> Report:
    options = {
        "--url": target.url,
        "--grpc-port": target.grpc_port,
        "--redis": target.redis,
        "--door": way.door,
        "--model": model,
        "--join": way.join,
        "-c": viewers,
        "-n": times,
        "--slow": way.slow,
        "--frozen": way.frozen,
        "--pid": target.pid,
    }
    return _run("watch", options, cores)


def _plans(scenario: Plans, target: Target, cores: Cores, quick: bool) -> Mapping[str, Measure]:
    runs = scenario.quick if quick else scenario.runs

    def measure(durability: str) -> Report:
        return _run("plans", {"--url": target.url, "--durability": durability, "-n": runs}, cores)

    return {durability: partial(measure, durability) for durability in ("none", "durable")}


def _run(module: str, options: Mapping[str, object], cores: Cores) -> Report:
    command = [sys.executable, "-m", f"bench.{module}", *(str(part) for pair in options.items() for part in pair)]
    with on_core(cores.load):
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    report: Report = json.loads(output)
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
    parser.add_argument("--only", type=_listed, default=list(_SCENARIOS), help=f"of {','.join(_SCENARIOS)}")
    parser.add_argument("--targets", type=_listed, default=list(_TARGETS), help=f"of {','.join(_TARGETS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="py-spy if it is installed, else cProfile; distorts the figures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
