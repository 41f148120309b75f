"""What a caller may do follows from its scopes."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.runs import EVERYDAY, Principal, Scope


def test_everyday_scopes_are_all_but_admin() -> None:
    assert {Scope.RUNS_READ, Scope.RUNS_WRITE, Scope.RUNS_EXECUTE_INLINE, Scope.APPROVALS_DECIDE} == EVERYDAY
    assert [scope for scope in Scope if not Principal("acme", "alice").may(scope)] == [Scope.ADMIN]


@pytest.mark.parametrize("scope", Scope)
def test_one_scope_is_one_scope_and_admin_is_all(scope: Scope) -> None:
    only = Principal("acme", "alice", frozenset({scope}))
    assert [each for each in Scope if only.may(each)] == (list(Scope) if scope is Scope.ADMIN else [scope])


@pytest.mark.parametrize("scopes", [EVERYDAY, frozenset[Scope](), frozenset({Scope.RUNS_READ}), frozenset(Scope)])
def test_travel_with_the_principal(scopes: frozenset[Scope]) -> None:
    """No scopes at all are something else than none said."""
    principal = Principal("acme", "alice", scopes)
    assert msgspec.json.decode(msgspec.json.encode(principal), type=Principal) == principal
