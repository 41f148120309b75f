"""The pump, with the real chat encoder, over a subscription and a sink that tests drive by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.errors import AccessEnded, Draining
from gateway.transports.drain import Drain
from gateway.transports.pump import LogCutShort, Pace, Pump, gather
from gateway.wire.chat import ChatEncoder
from gateway.wire.completion import CompletionFold
from gateway.wire.encoder import Encoder
from gateway.wire.native import NativeEncoder, Renderings
from orchestrator import endings
from orchestrator.errors import Failure, HeadgateError, RunFailed, Unavailable
from orchestrator.events import Entry, Event, EventType, Gap, encode
from orchestrator.runs import Principal, Run

AT = "2026-01-01T00:00:00.000Z"
RUN = Run(id="task-" + "0" * 32, tenant="t", model="m", answers=("agent",), created_ms=1_000)
ALICE = Principal("t", "alice")
ROLE = b'"role":"assistant"'


def delta(text: str) -> Event:
    return Event(EventType.LLM_PARTIAL, AT, agent_id="agent", message=text)


COMPLETED = endings.completed(AT, text="", usage={}, finish_reason="stop", duration_ms=1)
FAILED = endings.failed(AT, Failure(code="upstream_cut", message="cut", status=502))


class Script:
    """A subscription that hands out what the test feeds it, as often as asked."""

    def __init__(self, clock: Clock) -> None:
        self.ended = False
        self.waits: list[float] = []
        self.asked = asyncio.Event()
        self._clock = clock
        self._seq = 0
        self._ready: asyncio.Queue[Sequence[Entry | Gap] | BaseException] = asyncio.Queue()

    def feed(self, *events: Event) -> None:
        batch = []
        for event in events:
            self._seq += 1
            batch.append(Entry(self._seq, 5, encode(event)))
        self._ready.put_nowait(batch)

    def silence(self) -> None:
        """The next wait runs into its time-out."""
        self._ready.put_nowait([])

    def fail(self, error: BaseException) -> None:
        self._ready.put_nowait(error)

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        self.waits.append(timeout_s)
        self.asked.set()
        items = await self._ready.get()
        if isinstance(items, BaseException):
            raise items
        if not items:
            self._clock.now += timeout_s
        return items


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A sink that keeps each write apart."""

    def __init__(self) -> None:
        self.started = False
        self.finished = False
        self.writes: list[bytes] = []
        self.news = asyncio.Event()

    async def start(self) -> None:
        self.started = True
        self.news.set()

    async def write(self, frames: bytes) -> None:
        self.started = True
        self.writes.append(frames)
        self.news.set()

    async def finish(self, frames: bytes) -> None:
        await self.write(frames)
        self.finished = True


class Stage:
    def __init__(self) -> None:
        self.clock = Clock()
        self.script = Script(self.clock)
        self.sink = Recorder()
        self.drain = Drain(spread=lambda seconds: 0.0)
        self.written: list[int] = []
        self.pump = Pump(
            Pace(hold_s=2, keepalive_s=10), self.clock, self.drain, written=lambda items: self.written.append(len(items))
        )

    async def run(self, encoder: Encoder | None = None) -> HeadgateError | None:
        async with asyncio.timeout(5):
            return await self.pump.run(self.script, encoder or ChatEncoder(RUN), self.sink, ALICE)


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_what_is_ready_together_leaves_in_one_write(stage: Stage) -> None:
    stage.script.feed(Event(EventType.WORKFLOW_STARTED, AT), delta("a"), delta("b"))
    stage.script.feed(delta("c"))
    stage.script.feed(*COMPLETED)
    await stage.run()
    first, second, last = stage.sink.writes
    assert ROLE in first
    assert (first.count(b"data: "), second.count(b"data: ")) == (3, 1)
    assert last.endswith(b"data: [DONE]\n\n")
    assert stage.sink.finished
    assert stage.written == [3, 1, 2]


async def test_a_failure_before_any_output_is_raised(stage: Stage) -> None:
    stage.script.feed(Event(EventType.WORKFLOW_STARTED, AT))
    stage.script.feed(*FAILED)
    with pytest.raises(RunFailed) as raised:
        await stage.run()
    assert (raised.value.status, raised.value.code) == (502, "upstream_cut")
    assert not stage.sink.started


async def test_a_failure_in_one_batch_with_output_is_told_in_band(stage: Stage) -> None:
    """A replayed stream brings text and failure together. Its bytes are those of the first connection, which got both."""
    stage.script.feed(delta("a"), *FAILED)
    await stage.run()
    (only,) = stage.sink.writes
    assert ROLE in only
    assert only.endswith(b'data: {"error":{"message":"cut","type":"server_error","param":null,"code":"upstream_cut"}}\n\n')
    assert b"[DONE]" not in only


async def test_headers_wait_for_two_seconds_and_a_later_failure_is_in_band(stage: Stage) -> None:
    stage.script.silence()
    stage.script.feed(*FAILED)
    await stage.run()
    assert stage.script.waits[0] == 2
    assert [b"upstream_cut" in frames for frames in stage.sink.writes] == [True]


async def test_silence_is_filled_every_ten_seconds(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    for _ in range(7):
        stage.script.silence()
    stage.script.feed(*COMPLETED)
    await stage.run()
    beats = stage.sink.writes[1:-1]
    assert [beat.startswith(b": keepalive\n") for beat in beats] == [True] * 7
    assert [b"data: " in beat for beat in beats] == [False] * 5 + [True, False]
    assert stage.script.waits[1:8] == [10] * 7


async def test_events_without_frames_do_not_put_the_keepalive_off(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    stage.script.feed(Event(EventType.PROGRESS, AT))
    stage.clock.now = 0
    stage.script.silence()
    stage.script.feed(*COMPLETED)
    await stage.run()
    assert stage.sink.writes[1] == b": keepalive\n"


async def test_a_log_that_ends_without_an_ending_is_an_error(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    stage.script.silence()
    stage.script.ended = True
    await stage.run()
    assert b'"code":"log_cut_short"' in stage.sink.writes[-1]
    assert b"[DONE]" not in stage.sink.writes[-1]


@pytest.mark.parametrize(
    ("error", "code"), [(Unavailable(), b"backend_unavailable"), (ZeroDivisionError("boom"), b"internal_error")]
)
async def test_whatever_breaks_a_started_stream_is_told_in_band(stage: Stage, error: Exception, code: bytes) -> None:
    stage.script.feed(delta("a"))
    stage.script.fail(error)
    await stage.run()
    assert stage.sink.finished
    assert b'"code":"' + code in stage.sink.writes[-1]
    assert b"boom" not in stage.sink.writes[-1]
    assert b"[DONE]" not in stage.sink.writes[-1]


@pytest.mark.parametrize("error", [Unavailable(), ZeroDivisionError()])
async def test_whatever_breaks_a_stream_before_it_started_is_raised(stage: Stage, error: Exception) -> None:
    stage.script.fail(error)
    with pytest.raises(type(error)):
        await stage.run()
    assert not stage.sink.started


async def test_a_client_that_is_gone_is_not_an_error_of_the_stream(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    stage.script.fail(ConnectionResetError())
    with pytest.raises(ConnectionResetError):
        await stage.run()
    assert not stage.sink.finished


async def test_drain_ends_an_open_stream_resumably(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    with stage.drain.answer():
        running = asyncio.create_task(stage.run())
        await stage.sink.news.wait()
        closing = asyncio.create_task(stage.drain.finish(0.0, spread_s=0.0))
        await running
    await closing
    assert b'"code":"draining"' in stage.sink.writes[-1]
    assert stage.sink.finished


async def test_a_key_that_is_no_longer_good_ends_its_stream(stage: Stage) -> None:
    stage.script.feed(delta("a"))
    running = asyncio.create_task(stage.run())
    await stage.sink.news.wait()
    stage.drain.expire({"alice": 0})
    assert isinstance(await running, AccessEnded)
    assert b'"code":"access_ended"' in stage.sink.writes[-1]
    assert b"[DONE]" not in stage.sink.writes[-1]
    assert stage.sink.finished


async def test_a_key_that_is_no_longer_good_before_the_stream_started_is_raised(stage: Stage) -> None:
    running = asyncio.create_task(stage.run())
    await stage.script.asked.wait()
    stage.drain.expire({"alice": 0})
    with pytest.raises(AccessEnded):
        await running
    assert not stage.sink.started


async def test_drain_refuses_what_comes_later(stage: Stage) -> None:
    stage.drain.begin()
    with pytest.raises(Draining), stage.drain.answer():
        pass


async def test_gathering_a_whole(stage: Stage) -> None:
    fold = CompletionFold(RUN)
    stage.script.feed(delta("a"))
    stage.script.silence()
    stage.script.feed(delta("b"), *COMPLETED)
    await gather(stage.script, fold)
    assert b'"content":"ab"' in fold.body()


async def test_a_log_with_nothing_left_is_an_end_for_those_who_had_everything(stage: Stage) -> None:
    """A native reader who comes back from the last position of a finished run gets `done`, not an error and not silence."""
    stage.script.ended = True
    stage.script.silence()
    encoder = NativeEncoder(Renderings().sse(RUN.id))
    await stage.run(encoder)
    assert (stage.sink.writes, stage.sink.finished) == ([encoder.conclude()], True)


async def test_gathering_what_failed_or_was_cut(stage: Stage) -> None:
    stage.script.feed(delta("a"), *FAILED)
    with pytest.raises(RunFailed):
        await gather(stage.script, CompletionFold(RUN))
    stage.script.ended = True
    stage.script.silence()
    with pytest.raises(LogCutShort):
        await gather(stage.script, CompletionFold(RUN))
    assert issubclass(LogCutShort, HeadgateError)
