"""Engines as doors meet them: in their own process, or in another one."""

from __future__ import annotations

import pytest

from tests.orchestrator.apart import SHAPES, Shape


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    """How the test reaches its engine. The tests are the same, because doors cannot tell."""
    return SHAPES[request.param]
