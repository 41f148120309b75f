"""Which model a name stands for."""

from __future__ import annotations

import pytest

from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.errors import ModelNotFound


def entry(upstream: str) -> ModelEntry:
    return ModelEntry.model_validate({"plan": {"agent": {"upstream": upstream}}})


CATALOG = Catalog(
    {"*": entry("any"), "a/*": entry("a"), "a/b/*": entry("ab"), "a/exact": entry("exact"), "plain": entry("plain")}
)


@pytest.mark.parametrize(
    ("name", "upstream", "upstream_model"),
    [
        ("plain", "plain", "plain"),
        ("a/exact", "exact", "a/exact"),
        ("a/other", "a", "other"),
        ("a/b/c", "ab", "c"),
        ("a/b/c/d", "ab", "c/d"),
        ("a/b/", "a", "b/"),
        ("a/", "any", "a/"),
        ("b/other", "any", "b/other"),
        ("*", "any", "*"),
        ("A/other", "any", "A/other"),
    ],
)
def test_the_most_particular_entry_wins(name: str, upstream: str, upstream_model: str) -> None:
    found = CATALOG.resolve(name)
    assert found.entry.plan is not None
    assert (found.name, found.entry.plan.agent.upstream, found.upstream_model) == (name, (upstream,), upstream_model)


@pytest.mark.parametrize("name", ["", "other", "a", "a/", "x" * 10_000])
def test_a_name_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        Catalog({"a/*": entry("a")}).resolve(name)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 400


def test_names_keep_the_order_of_the_configuration_and_patterns_go_from_long_to_short() -> None:
    assert [name for name, _ in CATALOG.named()] == ["a/exact", "plain"]
    assert [prefix for prefix, _ in CATALOG.patterns()] == ["a/b/", "a/", ""]
