"""Whether a caller may: the one decision for every door. No I/O.

A door knows which scope each of its routes, methods and operations needs, and asks here. What a caller may see of what there is
follows from its tenant, and that the engine decides: another tenant's run is `RunNotFound` like one that never was.
"""

from __future__ import annotations

from orchestrator.errors import InsufficientScope
from orchestrator.runs import Principal, Scope


def allow(principal: Principal, scope: Scope | None) -> None:
    """Raises InsufficientScope. `None`: whoever is known may."""
    if scope is not None and not principal.may(scope):
        raise InsufficientScope(scope)
