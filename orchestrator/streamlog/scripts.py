"""The Lua scripts of the event log, each in a file of its own named by what it does. They are the log's atomic steps."""

from __future__ import annotations

import hashlib
from importlib import resources

import msgspec


class Script(msgspec.Struct, frozen=True):
    """A script's text and the digest under which Redis remembers it."""

    text: bytes
    sha: bytes


def load(name: str) -> Script:
    text = resources.files(__package__).joinpath("lua", f"{name}.lua").read_bytes()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
