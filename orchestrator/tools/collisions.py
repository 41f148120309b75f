"""What a request may not ask of agents with tools, told before a run begins. No I/O.

A call must have one addressee: a tool of the client's with the name of one of ours is refused. All names that begin with a
server's are taken, whatever the server offers at the moment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from orchestrator.errors import InvalidRequest
from orchestrator.tools.config import BETWEEN


def check_request(tools: Collection[str], body: Mapping[str, Any]) -> None:
    """`tools` are the names that the plan's agents list. Raises InvalidRequest, which names the place."""
    if not tools:
        return
    if isinstance(body.get("n"), int) and body["n"] > 1:
        raise InvalidRequest("This model calls tools of its own, and can only give one answer: n must be 1.", param="n")
    for place, name in _named(body):
        if name in tools or name.partition(BETWEEN)[0] in tools:
            raise InvalidRequest(
                f"The tool name '{name[:100]}' is taken: the model has a tool of that name itself. Give yours another one.",
                param=place,
                code="tool_name_taken",
            )


def _named(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every tool of the client's, and where it is named."""
    for field, inner in (("tools", "function"), ("functions", None)):
        listed = body.get(field)
        for index, tool in enumerate(listed if isinstance(listed, list) else ()):
            named = tool.get(inner) if inner is not None and isinstance(tool, dict) else tool
            if isinstance(named, dict) and isinstance(name := named.get("name"), str):
                yield f"{field}[{index}]{f'.{inner}' if inner else ''}.name", name
