from __future__ import annotations

import pytest

from orchestrator.embedded import Addresses
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.processes import Shared


@pytest.fixture
def shared(backends: Addresses) -> Shared:
    """Processes on the session's Temporal, on a task queue of their own."""
    return Shared(TemporalAddress(backends.temporal))
