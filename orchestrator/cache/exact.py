"""The same question: which run was asked it first, by a name in the log.

The name is given when that run begins, in the very call that looks for an earlier one, and whether the run then came to anything
is judged when somebody asks again. So a miss costs one call to Redis, an ending costs nothing, and what failed, was cancelled or
was lost cannot be given again. Of several that ask at once each is answered by a run of its own, and the first is kept.

A question that was answered by meaning has the answer from then on; its name then stands for that run, and tells the score.
"""

from __future__ import annotations

from orchestrator.cache.config import CacheConfig
from orchestrator.cache.recordings import Hit, Recordings
from orchestrator.runs import Run
from orchestrator.streamlog.log import ANY_RUN, Log, Reservation

_ASKED = "asked"
"""In place of a digest: the name's run was asked this very question. Otherwise the score of one that meant the same."""


class Exact:
    def __init__(self, log: Log, recordings: Recordings) -> None:
        self._log = log
        self._recordings = recordings

    async def find(self, run: Run, key: str, config: CacheConfig, *, renew: bool) -> Hit | None:
        """The recording under this key. Where there is none, and none in the making, this run's is to be it."""
        wanted = Reservation(run.id, _ASKED)
        held = await self._name(run, key, wanted, config.ttl_s, instead_of=ANY_RUN if renew else "")
        if held.run_id == run.id:
            return None
        judged = await self._recordings.of(run.tenant, held.run_id, side_effects=config.side_effects)
        if judged.running:
            return None
        score = None if held.digest == _ASKED else float(held.digest)
        least = 1.0 if config.semantic is None else config.semantic.threshold
        if judged.recording is not None and (score is None or score >= least):
            return Hit(judged.recording, score)
        await self._name(run, key, wanted, config.ttl_s, instead_of=held.run_id)
        return None

    async def learn(self, run: Run, key: str, found: Hit, keep_s: float) -> None:
        """The answer to this question is known now: that to another one, which meant the same."""
        await self._name(run, key, Reservation(found.recording.run_id, repr(found.score)), keep_s, instead_of=run.id)

    async def _name(self, run: Run, key: str, wanted: Reservation, keep_s: float, *, instead_of: str) -> Reservation:
        """No idempotency key has spaces, so the cache's names are its own."""
        keep_ms = max(1, round(keep_s * 1000))
        return await self._log.reserve(run.tenant, f"cache {key}", wanted, instead_of=instead_of, keep_ms=keep_ms)
