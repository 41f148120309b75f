"""Says single events in a run's log on behalf of whoever controls it: the engine, the workflow, the janitor.

Each is said under a name of its own, so saying it again, after a lost reply or by a second process, has no second effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.clock import Clock
from orchestrator.events import Event, EventType, encode, timestamp
from orchestrator.runs import RunState
from orchestrator.streamlog.log import Log


class Herald:
    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock

    async def say(
        self,
        run_id: str,
        event_type: EventType,
        payload: Mapping[str, Any] | None = None,
        *,
        once: str,
        state: RunState | None = None,
    ) -> bool:
        """Append the event and move the run to `state`. False if it had been said under this name `once` before.

        Raises LogClosed, LogMissing, LogUnavailable.
        """
        known = {key: value for key, value in (payload or {}).items() if value is not None}
        event = Event(event_type, timestamp(int(self._clock.time() * 1000)), payload=known or None)
        appended = await self._log.append(run_id, f"said:{once}", 1, 1, [encode(event)], events=[event], state=state)
        return not appended.repeated
