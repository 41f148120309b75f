"""The documentation, as far as a program can read it: links lead somewhere, configurations load, commands are there."""

from __future__ import annotations

import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from gateway.settings import Settings
from gateway.settings_layers import parse_yaml
from headgate.arguments import parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:^|[\s`$(]|bin/)headgate ((?:[a-z]+)(?: [a-z]+)?)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for language, text in _FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            yield text


@cache
def anchors(page: Path) -> frozenset[str]:
    """Those that headings get where such pages are shown."""
    text = _FENCE.sub("", page.read_text("utf-8"))
    titles = [re.sub(r"[^\w\- ]", "", title).strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return frozenset(title.replace(" ", "-") for title in titles)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in _LINK.findall(page.read_text("utf-8")):
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{path} is not there"
        assert to.is_relative_to(ROOT), f"{path} leads out"
        if anchor:
            assert anchor in anchors(to), f"{path} has no heading {anchor}"


def test_the_index_lists_every_page() -> None:
    """A page that nothing leads to is not read."""
    index = DOCS / "README.md"
    listed = {(DOCS / path).resolve() for path, _ in _LINK.findall(index.read_text("utf-8"))}
    assert {name(page) for page in PAGES[1:]} - {name(page) for page in listed if page.is_file()} == {name(index)}


def configurations() -> list[Any]:
    """The blocks that begin with a section of the configuration; others are parts of such."""
    found = []
    for page in PAGES:
        for number, text in enumerate(blocks(page, "yaml"), 1):
            if (section := re.match(r"(?:#.*\n)*(\w+):", text)) and section[1] in Settings.model_fields:
                found.append(pytest.param(text, id=f"{name(page)}-{number}"))
    return found


def upstreams(of: Any) -> Iterator[str]:
    """The names of those that are asked."""
    if isinstance(of, list):
        for each in of:
            yield from upstreams(each)
    elif isinstance(of, dict):
        for key, value in of.items():
            if key == "upstream":
                yield from [value] if isinstance(value, str) else value
            else:
                yield from upstreams(value)


@pytest.mark.parametrize("text", configurations())
def test_configurations_load(text: str) -> None:
    """The upstreams that a block names and does not have are elsewhere on its page, or the reader's own."""
    values = parse_yaml(re.sub(r"\$\{\w+(?::-[^}]*)?\}", "0123456789abcdef", text), "block")
    if "models" in values or "upstreams" in values:
        own = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
        named = dict.fromkeys(upstreams(values.get("models", {})), own) | values.get("upstreams", {})
        any_of_them = {"*": {"plan": {"agent": {"upstream": list(named)}}}}
        values |= {"upstreams": named, "models": values.get("models", any_of_them)}
    Settings.model_validate(values)


def test_the_stages_of_the_tutorial_load() -> None:
    """Put together as its reader does, a block at a time."""
    first, row, researchers, finding, real = blocks(DOCS / "tutorial" / "research.md", "yaml")
    second = first.partition("models:")[0] + row
    planner, writer, rest = second.partition("        - agent:\n            name: writer\n")
    third = planner + researchers + writer + rest.partition("            input: |\n")[0] + finding
    stages = [Settings.model_validate(parse_yaml(text, "stage")).models["team"].plan for text in (first, second, third, real)]
    names = [[node.name for node, _ in plan.agents()] for plan in stages if plan is not None]
    assert names[1:] == [["planner", "writer"], ["planner", "what", "who", "writer"], ["planner", "first", "second", "writer"]]


@cache
def commands() -> Mapping[str, frozenset[str]]:
    """What can be typed after `headgate`, and after that."""

    def below(of: ArgumentParser) -> dict[str, ArgumentParser]:
        return {
            name: each for action in of._actions if isinstance(action, _SubParsersAction) for name, each in action.choices.items()
        }

    return {name: frozenset(below(each)) for name, each in below(parser()).items()}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_there(page: Path) -> None:
    for text in blocks(page, "sh", "console", "shell", "bash"):
        for line in text.splitlines():
            for said in _COMMAND.findall(line.partition(" # ")[0]):
                command, _, action = said.partition(" ")
                assert command in commands(), line
                assert not commands()[command] or action in commands()[command], line


def test_the_commands_page_lists_every_command() -> None:
    said = set(re.findall(r"`(?:headgate )?([a-z]+)[ `]", (DOCS / "reference" / "command.md").read_text("utf-8")))
    assert commands().keys() - said == set()
