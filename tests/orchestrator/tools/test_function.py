"""Functions as tools: what models are told of them, and how they are called."""

from __future__ import annotations

import asyncio
import datetime
import threading
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

import headgate
from orchestrator.tools.function import FunctionTool, ToolNotLoaded, load
from orchestrator.tools.threads import Threads
from orchestrator.tools.tool import InvalidArguments, ToolUnavailable

THREADS = Threads()


def of(function: Callable[..., Any], threads: Threads = THREADS) -> FunctionTool:
    return FunctionTool("tool", function, threads, timeout_s=None, max_result_bytes=1000)


class Place(BaseModel):
    city: str
    zip_code: str | None = None


def test_the_schema_comes_from_the_type_hints_and_the_description_from_the_docstring() -> None:
    @headgate.tool
    async def forecast(
        place: Place,
        days: Annotated[int, Field(description="How many.", ge=1, le=14)] = 3,
        unit: Literal["celsius", "fahrenheit"] = "celsius",
        title: str | None = None,
    ) -> str:
        """The weather of the next days.

        Only for Europe.
        """
        return ""

    tool = of(forecast)
    assert tool.description == "The weather of the next days.\n\nOnly for Europe."
    assert tool.schema.parameters == {
        "type": "object",
        "properties": {
            "place": {"$ref": "#/$defs/Place"},
            "days": {"type": "integer", "description": "How many.", "minimum": 1, "maximum": 14, "default": 3},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "title": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["place"],
        "additionalProperties": False,
        "$defs": {
            "Place": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "zip_code": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
                },
                "required": ["city"],
            }
        },
    }


async def test_arguments_become_what_the_hints_say_and_results_become_json() -> None:
    @headgate.tool(description="Another description.", idempotent=False, timeout_s=3)
    async def meet(place: Place, day: datetime.date, hours: int = 1) -> dict[str, Any]:
        return {"city": place.city, "day": day, "hours": hours}

    tool = of(meet)
    assert (tool.description, tool.idempotent, tool.timeout_s) == ("Another description.", False, 3)
    seen = await tool.call({"place": {"city": "Paris"}, "day": "2026-11-20"})
    assert (seen.text, seen.success) == ('{"city":"Paris","day":"2026-11-20","hours":1}', True)
    with pytest.raises(InvalidArguments, match=r"arguments\.day: "):
        await tool.call({"place": {"city": "Paris"}, "day": "tomorrow"})


async def test_a_function_stays_what_it_is() -> None:
    @headgate.tool
    def double(number: int) -> int:
        return 2 * number

    assert double(4) == 8


async def test_functions_that_block_run_in_threads_and_together() -> None:
    both = threading.Barrier(2, timeout=10)

    @headgate.tool
    def waits() -> str:
        both.wait()
        return threading.current_thread().name

    tool = of(waits)
    first, second = await asyncio.gather(tool.call({}), tool.call({}))
    assert first.text == second.text == "tool tool"


async def test_threads_that_hang_are_counted_until_they_come_back() -> None:
    let = threading.Event()
    threads = Threads(most=1)

    @headgate.tool
    def hangs() -> None:
        let.wait(10)

    tool = of(hangs, threads)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tool.call({})
    with pytest.raises(ToolUnavailable, match="1 calls of functions still run"):
        await tool.call({})
    let.set()
    while threads.running:  # noqa: ASYNC110 - a thread that was given up tells nobody when it ends
        await asyncio.sleep(0.001)
    assert (await tool.call({})).text == "null"


async def test_a_function_that_says_what_is_wrong_is_an_answer() -> None:
    @headgate.tool
    def refuses() -> None:
        raise headgate.ToolError("Ask for a day in the future.")

    seen = await of(refuses).call({})
    assert (seen.text, seen.success) == ("Ask for a day in the future.", False)


@pytest.mark.parametrize("nameless", [lambda *numbers: 0, lambda **numbers: 0, lambda number: 0])
def test_parameters_without_names_or_hints_are_refused_when_they_are_declared(nameless: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"a tool's parameters have names|needs a type hint"):
        headgate.tool(nameless)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module:tool", "cannot be imported: ModuleNotFoundError"),
        ("os:no_such_function", "cannot be imported: AttributeError"),
        ("os.path:join", r"is not a tool: decorate it with @headgate\.tool"),
    ],
)
def test_what_cannot_be_loaded_says_why(path: str, problem: str) -> None:
    with pytest.raises(ToolNotLoaded, match=problem):
        load("name", path, THREADS, timeout_s=None, max_result_bytes=1)
