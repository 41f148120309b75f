"""Looks recordings up in the log."""

from __future__ import annotations

import asyncio

import msgspec

from orchestrator.cache.recording import MAX_EVENTS, Recording, recording
from orchestrator.streamlog.log import Log


class Judged(msgspec.Struct, frozen=True):
    """What a run gives to say again, if anything; or that it is too early to tell, because it still goes on."""

    recording: Recording | None = None
    running: bool = False


class Hit(msgspec.Struct, frozen=True):
    """A recording that answers a question; `score` None: that very question."""

    recording: Recording
    score: float | None = None


class Recordings:
    def __init__(self, log: Log) -> None:
        self._log = log

    async def of(self, tenant: str, run_id: str, *, side_effects: bool) -> Judged:
        run, entries = await asyncio.gather(self._log.run(run_id), self._log.read(run_id, 0, MAX_EVENTS))
        if run is None or run.tenant != tenant:
            return Judged()
        if not run.state.ended:
            return Judged(running=True)
        return Judged(recording(run, entries, side_effects=side_effects))
