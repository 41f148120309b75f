"""The rule that each route declares: who may call it, and which scope that takes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from orchestrator.runs import Scope


class Access(Enum):
    """The rule of a route. Those that name what is done need a valid key with that scope; the call is made for its tenant."""

    ANYBODY = "anybody"
    """Says nothing about tenants: health and readiness."""
    READ = "read"
    WRITE = "write"
    EXECUTE_INLINE = "execute inline"
    DECIDE = "decide"
    ADMIN = "admin"
    STREAM = "stream"
    """As READ; or a stream ticket in the query (`gateway.access.tickets`), for clients that cannot send headers."""
    OPERATOR = "operator"
    """Numbers about the whole process: a valid key, of whichever tenant and scopes."""
    INTERNAL = "internal"
    """Asked by our own gateways only, which have decided already."""

    @property
    def scope(self) -> Scope | None:
        """What a caller needs, for `orchestrator.access.allow`."""
        return _SCOPES.get(self)


_SCOPES: Mapping[Access, Scope] = {
    Access.READ: Scope.RUNS_READ,
    Access.STREAM: Scope.RUNS_READ,
    Access.WRITE: Scope.RUNS_WRITE,
    Access.EXECUTE_INLINE: Scope.RUNS_EXECUTE_INLINE,
    Access.DECIDE: Scope.APPROVALS_DECIDE,
    Access.ADMIN: Scope.ADMIN,
}
