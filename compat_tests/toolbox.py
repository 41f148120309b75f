"""The tools of the model `equipped`: what its server calls while it answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import headgate


@headgate.tool
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@headgate.tool
def login(user: str, password: str) -> dict[str, bool]:
    """A function that blocks, and whose arguments are not for everybody's eyes."""
    return {"known": user == "ann" and bool(password)}


@headgate.tool
async def wait_for_ever(began: str, ended: str) -> str:
    """A tool that hangs. It leaves a file when it is called, and one when it is told to stop."""
    Path(began).touch()  # noqa: ASYNC240 - an empty file
    try:
        await asyncio.Event().wait()
    finally:
        Path(ended).touch()  # noqa: ASYNC240 - an empty file
    return ""
