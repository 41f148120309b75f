"""An upstream that obeys a script: the demo model, the test double and the fault drill in one. See docs/reference/scripted.md.

It has the interface and the failures of a real one, and asks nobody. `scripted_server.py` plays the same scripts over HTTP.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec

from orchestrator.upstreams.chunks import FINISHES
from orchestrator.upstreams.config import ScriptedConfig
from orchestrator.upstreams.playing import Action, Play, prompt_of, script_for
from orchestrator.upstreams.rejections import Scrubber, rejection, reported
from orchestrator.upstreams.script import Blank, Broken, Cut, Garbage, Line, Manner, Status, Wait
from orchestrator.upstreams.upstream import (
    Call,
    Finish,
    ModelCard,
    Note,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamSilent,
    UpstreamTooSlow,
    Usage,
)
from orchestrator.upstreams.witness import Ending, Witness

BATCH = 64
"""Pieces given at once when nothing slows them down."""

MAX_LINE = 1 << 20
_NOTHING_TO_HIDE = Scrubber("", ())


class ScriptedUpstream:
    continues = True

    def __init__(
        self,
        name: str = "demo",
        config: ScriptedConfig | None = None,
        witness: Witness | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock` tells seconds since the epoch, in which `Call.deadline_ms` is given."""
        self.name = name
        self.witness = witness or Witness()
        self._config = config or ScriptedConfig(kind="scripted")
        self._clock = clock
        self._sleep = sleep

    async def stream(self, call: Call) -> AsyncGenerator[Sequence[Piece], None]:
        """See `Upstream.stream`. Raises InvalidRequest for a script with a mistake in it."""
        script = script_for(call.body, self._config.script, self._config.rate)
        record, earlier = self.witness.open(call.run_id, call.model, call.body, prompt_of(call.body))
        play = Play(script, call.body, earlier_calls=earlier, prefix=call.prefix)
        performance = _Performance(play.manner)
        ending: Ending = "cancelled"
        batch: list[Piece] = []
        try:
            for action in play.actions():
                if isinstance(action, Wait) or len(batch) >= BATCH:
                    if batch:
                        yield batch
                        batch = []
                    await self._wait(action.seconds if isinstance(action, Wait) else 0.0, call.deadline_ms)
                pieces = performance.pieces(action)
                record.pieces += len(pieces)
                batch.extend(pieces)
                if performance.failure is not None:
                    break
            if batch:
                yield batch
            if performance.failure is not None:
                raise performance.failure
            ending = "completed"
        except UpstreamCut:
            ending = "cut"
            raise
        except UpstreamError:
            ending = "failed"
            raise
        finally:
            self.witness.close(record, ending)

    async def models(self) -> Sequence[ModelCard]:
        """Any name will do; one is as good as another."""
        return [ModelCard(id=self.name, owned_by="headgate")]

    async def close(self) -> None:
        """Nothing is held."""

    async def _wait(self, seconds: float, deadline_ms: int | None) -> None:
        """Sleep, and fail as a real upstream's silence would."""
        left = math.inf if deadline_ms is None else deadline_ms / 1000 - self._clock()
        idle = self._config.idle_timeout_s
        await self._sleep(max(0.0, min(seconds, left, idle)))
        if seconds > idle and idle < left:
            raise UpstreamSilent
        if seconds >= left:
            raise UpstreamTooSlow


class _Performance:
    """Actions as pieces, with the outcomes that `openai_http` gives the same faults."""

    def __init__(self, manner: Manner) -> None:
        self.failure: UpstreamError | None = None
        self._without = manner.without
        self._started = False
        self._broken = 0
        self._broken_in_a_row = 0

    def pieces(self, action: Action) -> Sequence[Piece]:
        match action:
            case Wait() | Blank():
                return ()
            case Broken():
                return self._break()
            case Finish():
                return self._finish(action)
            case Usage():
                return self._close(action)
            case Status():
                self.failure = _rejected(action, self._started)
            case Cut():
                self.failure = UpstreamCut()
            case Garbage():
                self.failure = UpstreamGarbled("The upstream answered with a web page. Check the upstream's `base_url`.")
            case Line():
                return self._break() if action.size <= MAX_LINE else self._too_long()
            case _:
                self._started = True
                self._broken_in_a_row = 0
                return (action,)
        return ()

    def _finish(self, finish: Finish) -> Sequence[Piece]:
        if "finish" in self._without:
            if "done" in self._without:
                self.failure = UpstreamCut()
                return ()
            return Note("no_finish_reason"), finish
        reason = FINISHES.get(finish.reason.lower())
        if reason is None:
            return Note("unknown_finish_reason"), Finish(finish.choice, "stop")
        return (Finish(finish.choice, reason),)

    def _close(self, usage: Usage) -> Sequence[Piece]:
        last = Note("no_usage") if "usage" in self._without else usage
        return (Note("no_done"), last) if "done" in self._without else (last,)

    def _break(self) -> Sequence[Piece]:
        self._broken += 1
        self._broken_in_a_row += 1
        if self._broken_in_a_row > 1 or self._broken > 3:
            self.failure = UpstreamGarbled("The upstream's answer contains too many lines that are not JSON.")
        return (Note("broken_line"),)

    def _too_long(self) -> Sequence[Piece]:
        self.failure = UpstreamGarbled(f"The upstream sent an event of more than {MAX_LINE} bytes.")
        return ()


def error_body(status: Status) -> bytes:
    """The envelope that an OpenAI-compatible server would send."""
    error = {
        "message": status.message or f"The script says: error {status.status}.",
        "type": "rate_limit_error"
        if status.status == 429
        else "server_error"
        if status.status >= 500
        else "invalid_request_error",
        "param": None,
        "code": status.code,
    }
    return msgspec.json.encode({"error": error})


def _rejected(status: Status, started: bool) -> UpstreamError:
    if started:
        return reported(error_body(status), _NOTHING_TO_HIDE)
    headers = {} if status.retry_after_s is None else {"Retry-After": str(status.retry_after_s)}
    return rejection(status.status, error_body(status), headers, _NOTHING_TO_HIDE, 0.0)
