"""The manifest and the tests say the same. Read from the sources, so that it holds whichever tests are run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from compat_tests.manifest import MANIFEST


class Proof(NamedTuple):
    test: str
    promises: frozenset[str]
    docstring: str


def proofs() -> Iterator[Proof]:
    """Every test of this folder but these."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if file.name == Path(__file__).name:
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield Proof(f"{file.name}::{node.name}", frozenset(_promises(node)), ast.get_docstring(node) or "")


def _promises(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "promise":
            yield from (str(argument.value) for argument in decorator.args if isinstance(argument, ast.Constant))


def test_every_promise_has_a_test_and_every_test_a_promise() -> None:
    found = list(proofs())
    proved = frozenset().union(*(proof.promises for proof in found))
    assert proved == MANIFEST.keys()
    assert [proof.test for proof in found if not proof.promises] == []


def test_every_test_names_its_source() -> None:
    assert [proof.test for proof in proofs() if not proof.docstring] == []


def test_every_promise_has_a_sentence_and_a_source() -> None:
    assert [name for name, promised in MANIFEST.items() if not (promised.what.endswith(".") and promised.source)] == []
