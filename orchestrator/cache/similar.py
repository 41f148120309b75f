"""Questions that mean the same: found by the likeness of their embeddings, among those of a tenant that had good answers.

What the user said last is compared by meaning; all that was said before it, and all else that an answer depends on, has to be the
same. Embedding whole conversations would find long ones alike that end in different questions.

Looking is bounded in time and fails open: then the request is answered anew, and a metric tells why. A question is remembered
once its run has ended well, by the process that submitted it; if that is lost meanwhile, so is the memory, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import msgspec

from orchestrator.cache.config import CacheConfig, SemanticConfig
from orchestrator.cache.key import Question
from orchestrator.cache.recordings import Hit, Recordings
from orchestrator.clock import Clock
from orchestrator.errors import HeadgateError
from orchestrator.metrics import Metrics
from orchestrator.runs import Run
from orchestrator.store.questions import Asked, Questions
from orchestrator.streamlog.fanout import Fanout
from orchestrator.streamlog.log import LogUnavailable
from orchestrator.upstreams.upstream import UpstreamError

_log = logging.getLogger(__name__)

_LOOKED_AT = 3
"""How many of the most alike are tried; recordings of the first may be gone."""

_MOST_LESSONS = 2000
"""Runs whose end is waited for at a time."""


class Embedder(Protocol):
    async def embed(self, model: str, text: str) -> Sequence[float]:
        """What the text means, as a vector. Raises UpstreamError."""


class Lesson(msgspec.Struct, frozen=True):
    """A question that nobody had asked in such words; to be remembered when it has been answered well."""

    question: Question
    meaning: Sequence[float]
    config: CacheConfig


class Known(msgspec.Struct, frozen=True):
    """A question that had been asked in other words, and for how much longer its answer may be given."""

    hit: Hit
    left_s: float


class Similar:
    def __init__(
        self,
        questions: Questions,
        embedders: Mapping[str, Embedder],
        recordings: Recordings,
        fanout: Fanout,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._questions = questions
        self._embedders = embedders
        self._recordings = recordings
        self._fanout = fanout
        self._metrics = metrics
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def find(
        self, run: Run, question: Question, config: CacheConfig, semantic: SemanticConfig, *, renew: bool
    ) -> Known | Lesson | None:
        """The answer to a question like this; or what there is to learn. None: it could not be found out in time."""
        try:
            async with asyncio.timeout(semantic.wait_s):
                meaning = await self._embedders[semantic.upstream].embed(semantic.embedding_model, question.text)
                place = _place(question, semantic, meaning)
                found = None if renew else await self._nearest(run, place, meaning, config, semantic)
        except (TimeoutError, HeadgateError) as error:
            _log.warning("a question was not compared: %s", getattr(error, "code", "too_slow"), extra={"workflow_id": run.id})
            self._metrics.cache_failed(_why(error))
            return None
        return found or Lesson(question, meaning, config)

    def learn(self, run: Run, lesson: Lesson, semantic: SemanticConfig) -> None:
        """Remember the question when the run, which has been opened, has answered it."""
        if len(self._tasks) < _MOST_LESSONS:
            task = asyncio.create_task(self._learn(run, lesson, semantic), name=f"lesson {run.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _nearest(
        self, run: Run, place: str, meaning: Sequence[float], config: CacheConfig, semantic: SemanticConfig
    ) -> Known | None:
        now_ms = self._now_ms()
        for near in await self._questions.near(run.tenant, place, meaning, now_ms, _LOOKED_AT):
            if not near.score >= semantic.threshold:  # nor where it is no number: vectors may be too short for half floats
                return None
            judged = await self._recordings.of(run.tenant, near.run_id, side_effects=config.side_effects)
            if judged.recording is not None:
                return Known(Hit(judged.recording, near.score), (near.until_ms - now_ms) / 1000)
            await self._questions.forget(run.tenant, place, near.run_id)
        return None

    async def _learn(self, run: Run, lesson: Lesson, semantic: SemanticConfig) -> None:
        try:
            await self._fanout.over(run.id)
            judged = await self._recordings.of(run.tenant, run.id, side_effects=lesson.config.side_effects)
            if judged.recording is None:
                return
            now_ms = self._now_ms()
            asked = Asked(
                tenant=run.tenant,
                model=run.model,
                place=_place(lesson.question, semantic, lesson.meaning),
                question=lesson.question.digest,
                run_id=run.id,
                asked_ms=now_ms,
                until_ms=now_ms + round(semantic.ttl_s * 1000),
            )
            await self._questions.remember(asked, lesson.meaning, semantic.max_entries)
        except HeadgateError as error:
            _log.warning("a question was not remembered: %s", error.code, extra={"workflow_id": run.id})
            self._metrics.cache_failed(_why(error))
        except Exception:  # noqa: BLE001 - the outermost edge of this task: nobody waits for it
            _log.exception("a question was not remembered", extra={"workflow_id": run.id})

    def _now_ms(self) -> int:
        return int(self._clock.time() * 1000)


def _place(question: Question, semantic: SemanticConfig, meaning: Sequence[float]) -> str:
    """Where the question stands: only vectors that one model has made, of one length, can be compared."""
    return f"{question.scope}:{semantic.upstream}:{semantic.embedding_model}:{len(meaning)}"


def _why(error: Exception) -> Literal["slow", "upstream", "log", "store"]:
    match error:
        case TimeoutError():
            return "slow"
        case UpstreamError():
            return "upstream"
        case LogUnavailable():
            return "log"
    return "store"
