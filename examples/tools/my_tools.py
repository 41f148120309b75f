"""Two functions that models may call. See docs/how-to/tools.md."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from pydantic import Field

import headgate

FORECASTS = {"Paris": 18, "Rome": 24}


@headgate.tool
async def weather(
    city: Annotated[str, Field(description="Its name in English.")],
    unit: Literal["celsius", "fahrenheit"] = "celsius",
) -> dict[str, float | str]:
    """The weather in a city today."""
    if city not in FORECASTS:
        raise headgate.ToolError(f"There is no forecast for {city}, only for {' and '.join(FORECASTS)}.")
    degrees = FORECASTS[city]
    return {"city": city, "sky": "sunny", "degrees": degrees if unit == "celsius" else degrees * 1.8 + 32}


@headgate.tool(idempotent=False, timeout_s=5)
def book(city: str, nights: Annotated[int, Field(ge=1, le=30)]) -> str:
    """Book a hotel room."""
    time.sleep(0.1)  # a library that blocks: functions without `async` have a thread of their own
    return f"booked {nights} nights in {city}"
