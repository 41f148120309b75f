"""The examples of docs/how-to/tools.md do what it says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.settings import load
from orchestrator.tools.registry import Tools
from orchestrator.tools.tool import InvalidArguments

EXAMPLES = Path(__file__).parents[3] / "examples" / "tools"


async def test_the_examples_work_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    tools = Tools(load(EXAMPLES / "config.yaml", environ={}).tools)
    async with tools.running():
        toolbox = await tools.offer(["weather", "book", "notes"], 10.0)
        told = [
            (await toolbox.call("weather", {"city": "Paris"})).text,
            (await toolbox.call("weather", {"city": "Oslo"})).text,
            (await toolbox.call("book", {"city": "Rome", "nights": 2})).text,
            (await toolbox.call("notes__add_note", {"text": "Paris"})).text,
        ]
        with pytest.raises(InvalidArguments):
            toolbox.find("book").schema.check({"city": "Rome", "nights": 31})
    assert told == [
        '{"city":"Paris","sky":"sunny","degrees":18}',
        "There is no forecast for Oslo, only for Paris and Rome.",
        "booked 2 nights in Rome",
        "note 1 is kept",
    ]
