"""The scripts of `lua/`, each with what they share in front of it."""

from __future__ import annotations

from orchestrator.streamlog.scripts import Script, load


def script(name: str) -> Script:
    return load("shared", name, package=__package__)
