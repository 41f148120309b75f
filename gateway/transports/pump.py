"""The pump: subscription → encoder → sink. Every door that streams runs this one loop.

All events that are ready together leave in one write. Headers wait for the first frame, an ending, or `hold_s`, so a run that
fails before it said anything is an HTTP error; afterwards silence is filled with the encoder's keepalives. A stream ends when its
encoder says so. One that breaks for a reason outside its log says that in-band too: a body never just stops as if all were well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from gateway.observe import logs
from gateway.transports.drain import Drain
from gateway.transports.sink import Sink
from gateway.wire.encoder import Encoder
from orchestrator.engine import Subscription
from orchestrator.errors import Failure, HeadgateError, RunFailed, Unavailable
from orchestrator.events import Entry, Gap
from orchestrator.runs import Principal

log = logs.logger(__name__)


class LogCutShort(Unavailable):
    """The run's log ended without saying how the run ended. Ask again, or resume the stream."""

    code = "log_cut_short"


class Pace(msgspec.Struct, frozen=True):
    """`hold_s`: how long headers wait for the first frame. `keepalive_s`: silence after which a keepalive is due."""

    hold_s: float = 2.0
    keepalive_s: float = 10.0


class Pump:
    """Moves one stream. `clock` is monotonic; `written` is told of each batch whose frames were just written."""

    def __init__(
        self,
        pace: Pace,
        clock: Callable[[], float],
        drain: Drain,
        *,
        written: Callable[[Sequence[Entry | Gap]], None] | None = None,
    ) -> None:
        self._pace = pace
        self._clock = clock
        self._drain = drain
        self._written = written

    async def run(
        self, subscription: Subscription, encoder: Encoder, sink: Sink, bearer: Principal | None
    ) -> HeadgateError | None:
        """Until the encoder has ended, on behalf of whoever asked. What broke the stream off, if the client was told in-band.

        Raises HeadgateError while nothing was sent, ConnectionError when the client is gone.
        """
        try:
            async with self._drain.until_closed(bearer):
                await self._move(subscription, encoder, sink)
            return None
        except ConnectionError:
            raise
        except HeadgateError as error:
            if not sink.started:
                raise
            log.warning("stream_broken", code=error.code)
            broken = error
        except Exception:
            if not sink.started:
                raise
            log.exception("stream_broken")
            broken = HeadgateError()
        await sink.finish(encoder.interrupt(broken.failure()))
        return broken

    async def _move(self, subscription: Subscription, encoder: Encoder, sink: Sink) -> None:
        clock, pace = self._clock, self._pace
        quiet_since = clock()
        hold_until = quiet_since + pace.hold_s
        silences = 0
        while True:
            due = quiet_since + (silences + 1) * pace.keepalive_s if sink.started else hold_until
            items = await subscription.next(max(due - clock(), 0.0))
            if items:
                frames = encoder.encode(items)
                if encoder.failure is not None and not encoder.begun and not sink.started:
                    raise RunFailed.of(encoder.failure)
                if encoder.ended:
                    await sink.finish(frames)
                elif frames:
                    await sink.write(frames)
                else:
                    continue
                if self._written is not None:
                    self._written(items)
                if encoder.ended:
                    return
                quiet_since, silences = clock(), 0
            elif subscription.ended:
                frames = encoder.conclude()
                if not encoder.ended:
                    raise LogCutShort(retry_after_s=1)
                await sink.finish(frames)
                return
            elif not sink.started:
                await sink.start()
            elif clock() >= due:
                silences += 1
                if frames := encoder.keepalive(silences * pace.keepalive_s):
                    await sink.write(frames)


_PATIENCE_S = 60.0


class Fold(Protocol):
    """What an answer that is given as a whole is gathered in."""

    failure: Failure | None
    ended: bool

    def feed(self, items: Sequence[Entry | Gap]) -> None: ...


async def gather(subscription: Subscription, fold: Fold) -> None:
    """Feed the fold until it has ended; it then holds the whole. Raises RunFailed."""
    while not fold.ended:
        items = await subscription.next(_PATIENCE_S)
        if items:
            fold.feed(items)
        elif subscription.ended:
            raise LogCutShort(retry_after_s=1)
    if fold.failure is not None:
        raise RunFailed.of(fold.failure)
