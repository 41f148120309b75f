"""The tools of the model `equipped`: what its server calls while it answers."""

from __future__ import annotations

import headgate


@headgate.tool
async def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@headgate.tool
def login(user: str, password: str) -> dict[str, bool]:
    """A function that blocks, and whose arguments are not for everybody's eyes."""
    return {"known": user == "ann" and bool(password)}
