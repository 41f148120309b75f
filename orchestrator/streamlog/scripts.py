"""Lua scripts, each in a file of its own in a package's `lua/`, named by what it does. They are the atomic steps in Redis."""

from __future__ import annotations

import hashlib
from importlib import resources

import msgspec


class Script(msgspec.Struct, frozen=True):
    """A script's text and the digest under which Redis remembers it."""

    text: bytes
    sha: bytes


def load(*names: str, package: str = __package__) -> Script:
    """The script; what several share is a file that is named ahead of it."""
    files = resources.files(package).joinpath("lua")
    text = b"\n".join(files.joinpath(f"{name}.lua").read_bytes() for name in names)
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())
