"""Reads `queries.sql`: statements with a name and a line that says what each is for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files

_STATEMENT = re.compile(r"^-- name: (?P<name>\w+)\n(?P<about>(?:--.*\n)+)(?P<sql>(?:(?!--).*\n?)+)", re.MULTILINE)


def load_queries() -> Mapping[str, str]:
    """The statements of `queries.sql` by name."""
    return parse_queries((files("orchestrator.store") / "queries.sql").read_text())


def parse_queries(text: str) -> Mapping[str, str]:
    """Statements by name. Raises ValueError for a name used twice, or one without a description or a statement."""
    queries: dict[str, str] = {}
    for match in _STATEMENT.finditer(text):
        if match["name"] in queries:
            raise ValueError(f"two queries are named {match['name']}")
        queries[match["name"]] = match["sql"].strip()
    if missing := set(re.findall(r"^-- name: *(.*)", text, re.MULTILINE)) - {name for name, sql in queries.items() if sql}:
        raise ValueError(f"queries without a description or a statement: {sorted(missing)}")
    return queries
