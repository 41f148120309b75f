"""An event-stream reader written from the standard and nothing else (WHATWG HTML, section 9.2.6), to judge what we write.

Whole stream in, events out, one rule per line; deliberately not the decoder that the product ships. `strict_lines` splits where
Python's `splitlines` does, like many clients do: what we write must read the same either way.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Read(NamedTuple):
    data: str
    event: str
    id: str


def read(stream: bytes, *, splitlines: bool = False) -> list[Read]:
    text = stream.decode("utf-8").removeprefix("\ufeff")
    lines = text.splitlines() if splitlines else re.split("\r\n|\r|\n", text)[:-1]
    events: list[Read] = []
    data: list[str] = []
    name = last_id = ""
    for line in lines:
        if line == "":
            if data:
                events.append(Read("\n".join(data), name, last_id))
            data, name = [], ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            elif field == "id" and "\0" not in value:
                last_id = value
    return events
