"""`docs/why/threats.md` is as good as its tests: each that it names exists, and no row is without one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/why/threats.md").read_text()
NAMED = re.compile(r"`((?:tests|compat_tests)/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> Iterator[list[str]]:
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] not in ("surface", "---"):
            yield cells


def names_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row[0]}: {row[1]}"[:60])
def test_every_threat_has_a_defence_and_a_test_that_exists(row: list[str]) -> None:
    surface, threat, defence, proof = row
    assert surface
    assert threat
    assert defence
    named = NAMED.findall(proof)
    assert len(named) == len(proof.split()), "a proof names tests and nothing else"
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or (test.startswith("test_") and test in names_in(ROOT / file)), f"{file}::{test}"


def test_every_file_of_attacks_is_in_it() -> None:
    """Whoever adds a kind of attack says what it is about."""
    files = {f"tests/security/{file.name}" for file in Path(__file__).parent.glob("test_*.py")} - {
        "tests/security/test_threats.py"
    }
    assert files <= {file for file, _ in NAMED.findall(PAGE)}
