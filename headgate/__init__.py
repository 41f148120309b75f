"""What users import. Each name is loaded when it is first used, so that the command starts without Temporal and gRPC."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headgate.emitting import EmitRefused, Emitting, emit, flush, say

__all__ = ["EmitRefused", "Emitting", "__version__", "emit", "flush", "say"]

__version__ = "0.1.0"

_HOMES = dict.fromkeys(("EmitRefused", "Emitting", "emit", "flush", "say"), "headgate.emitting")


def __getattr__(name: str) -> Any:
    if (home := _HOMES.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
