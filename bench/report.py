"""From the reports of all rounds to what a person reads: medians, promises kept or missed, two tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.scenarios import PROMISES, Measured

_COLUMNS = {
    "broken": "broken",
    "chunks/s": "flow_chunks_per_s",
    "CPU µs/chunk": "cpu_us_per_chunk",
    "CPU ms/req": "cpu_ms_per_req",
    "ttft p50": "ttft_ms.p50",
    "ttft p99": "ttft_ms.p99",
    "age p50": "chunk_age_ms.p50",
    "age p99": "chunk_age_ms.p99",
    "peak MB": "rss_peak_mb",
}
_NOT_MEDIANS: Mapping[str, Callable[[Sequence[Any]], Any]] = {"broken": sum, "rss_mb": min, "rss_peak_mb": max}


def medians(reports: Sequence[Mapping[str, Any]]) -> Measured:
    by_key: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for report in reports:
        by_key.setdefault((report["scenario"], report["target"]), []).append(report)
    return {key: _median(rounds) for key, rounds in by_key.items()}


def _median(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same shape, with the median in the place of each number. Of broken streams, all count; of memory, the extremes: what a
    first round takes from the system, the others find there."""
    median: dict[str, Any] = {}
    for key, value in rounds[0].items():
        values = [one.get(key) for one in rounds]
        if key in _NOT_MEDIANS:
            median[key] = _NOT_MEDIANS[key](values)
        elif isinstance(value, dict):
            median[key] = _median([one for one in values if one is not None])
        elif isinstance(value, int | float):
            median[key] = statistics.median(one for one in values if one is not None)
    return median


def check_promises(measured: Measured) -> list[dict[str, Any]]:
    results = []
    for promise in PROMISES:
        try:
            got = round(promise.value(measured), 3)
        except (KeyError, TypeError, ZeroDivisionError):
            got = None  # this run did not measure it
        limit = f"{'≥' if promise.at_least else '≤'} {promise.limit:g} {promise.unit}".rstrip()
        kept = None if got is None else promise.kept(got)
        results.append({"promise": promise.name, "target": limit, "got": got, "kept": kept})
    return results


def measures_table(measured: Measured) -> str:
    rows = [["", "", *_COLUMNS]]
    for (scenario, target), report in measured.items():
        cells = []
        for path in _COLUMNS.values():
            value: Any = report
            for key in path.split("."):
                value = (value or {}).get(key)
            cells.append("-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:g}")
        rows.append([scenario, target, *cells])
        for kind, use in report.get("processes", {}).items():
            if len(report["processes"]) > 1:
                per_chunk = use["cpu_s"] * 1e6 / max(1, report["chunks"])
                per_request = use["cpu_s"] * 1e3 / max(1, report["done"])
                shown = {2: f"{per_chunk:.3g}", 3: f"{per_request:.3g}", 8: f"{use['rss_peak_mb']:g}"}
                rows.append(["", f"  {kind}", *(shown.get(column, "") for column in range(len(_COLUMNS)))])
    return _table(rows)


def promises_table(promises: Sequence[Mapping[str, Any]]) -> str:
    marks = {True: "kept", False: "MISSED", None: "not measured"}
    rows = [["promise", "target", "got", ""]]
    for promise in promises:
        got = "-" if promise["got"] is None else f"{promise['got']:g}"
        rows.append([promise["promise"], promise["target"], got, marks[promise["kept"]]])
    return _table(rows)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:]])
