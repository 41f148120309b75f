"""The gRPC door on a free port of the loopback, as the gateway opens it, and clients made from the `.proto` files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import aio

from gateway.app import new_session_id
from gateway.keyring import key_ring
from gateway.observe.metrics import GatewayMetrics
from gateway.rpc import grpc_door
from gateway.settings import Settings
from gateway.transports.drain import Drain
from orchestrator.engine import Engine, Subscription
from orchestrator.events import Entry, Gap, encode
from orchestrator.rpc.server import Listening
from orchestrator.runs import Principal, Run, RunRequest, RunState, new_run_id
from orchestrator.streamlog.log import Appended, Position
from orchestrator.streamlog.memory import MemoryLog, MemoryStore
from orchestrator.upstreams.scripted import ScriptedUpstream
from protos.events_pb2_grpc import EventServiceStub
from protos.orchestrator_pb2 import SubmitTaskRequest
from protos.orchestrator_pb2_grpc import OrchestratorServiceStub
from protos.streaming_pb2 import StreamRequest, TaskUpdate
from protos.streaming_pb2_grpc import StreamingServiceStub
from tests.orchestrator.engines import MODELS, an_engine

ALICE = (("x-api-key", "key-of-alice"),)
MALLORY = (("authorization", "Bearer key-of-mallory"),)
ACME = Principal("acme", "alice")

SETTINGS: dict[str, Any] = {
    "auth": {
        "mode": "keys",
        "keys": [
            {"key": "key-of-alice", "name": "alice", "tenant": "acme"},
            {"key": "key-of-mallory", "name": "mallory", "tenant": "other"},
        ],
    },
    "grpc": {"port": 0},
    "upstreams": {"demo": {"kind": "scripted"}},
    "models": MODELS,
}


@dataclass
class Door:
    engine: Engine
    store: MemoryStore
    drain: Drain
    metrics: GatewayMetrics
    listening: Listening
    channel: aio.Channel

    def __post_init__(self) -> None:
        # The generated stubs have no types.
        self.streams: Any = StreamingServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.tasks: Any = OrchestratorServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.events: Any = EventServiceStub(self.channel)  # type: ignore[no-untyped-call]

    async def submit(self, script: str, **more: Any) -> str:
        """A task that plays a script; its id."""
        request = SubmitTaskRequest(query=f"/script\n{script}", model="demo", **more)
        answer = await self.tasks.SubmitTask(request, metadata=ALICE, timeout=10)
        return str(answer.task_id)

    def stream(self, run_id: str, metadata: Any = ALICE, timeout: float = 10, **request: Any) -> Any:
        return self.streams.StreamTaskExecution(StreamRequest(workflow_id=run_id, **request), metadata=metadata, timeout=timeout)

    async def read(self, run_id: str, **request: Any) -> list[TaskUpdate]:
        """All updates until the stream ends, which it has to do well."""
        return [update async for update in self.stream(run_id, **request)]

    async def open(self, *, max_events: int | None = None) -> tuple[str, MemoryLog]:
        """A run that nobody executes, and a log to write its events to."""
        if max_events is not None:
            self.store.max_events = max_events
        log = MemoryLog(self.store)
        run = Run(id=new_run_id(1_730_000_000_000, _Counting()), tenant="acme", model="demo", answers=("agent",), created_ms=1)
        await log.open(run, RunRequest("demo", "demo", {}, {}), [])
        return run.id, log

    async def write(self, log: MemoryLog, run_id: str, events: Iterable[Any], *, ends: bool = False) -> Appended:
        bodies = [event if isinstance(event, bytes) else encode(event) for event in events]
        state = RunState.COMPLETED if ends else RunState.RUNNING
        return await log.append(run_id, "test", 1, 0, bodies, state=state, ends=ends)

    def entries(self, run_id: str) -> list[Entry]:
        """The run's log, behind the door's back."""
        record = self.store.record(run_id)
        assert record is not None
        return record.after(0, None, 1_000_000)


class _Counting:
    """Random bytes for ids, without chance."""

    _made = 0

    def __call__(self, count: int) -> bytes:
        type(self)._made += 1
        return self._made.to_bytes(count, "big")


class Watched:
    """An engine that tells what becomes of its subscriptions. Everything else is the real one's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.opened = asyncio.Event()
        self.closed = asyncio.Event()
        self.delivered = 0
        """Items that were handed to readers."""
        self.waiting = asyncio.Event()
        """A reader has taken all there is and asks for more."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @asynccontextmanager
    async def subscribe(self, principal: Principal, run_id: str, position: Position) -> AsyncIterator[Subscription]:
        async with self._engine.subscribe(principal, run_id, position) as subscription:
            self.opened.set()
            try:
                yield _Counted(subscription, self)
            finally:
                self.closed.set()


class _Counted:
    def __init__(self, subscription: Subscription, watched: Watched) -> None:
        self._subscription = subscription
        self._watched = watched

    async def next(self, timeout_s: float) -> Sequence[Entry | Gap]:
        self._watched.waiting.set()
        items = await self._subscription.next(timeout_s)
        self._watched.waiting.clear()
        self._watched.delivered += len(items)
        return items

    @property
    def ended(self) -> bool:
        return self._subscription.ended


Open = Callable[..., Awaitable[Door]]


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream("demo")


@pytest.fixture
async def open_door(upstream: ScriptedUpstream) -> AsyncIterator[Open]:
    """`await open_door(streams={…}, …)`: with other settings. Closed when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(wrap: Callable[[Engine], Engine] = lambda engine: engine, options: Any = (), **settings: Any) -> Door:
            store, asked = MemoryStore(lambda: 1_730_000_000.123), {**SETTINGS, **settings}
            engine = wrap(await stack.enter_async_context(an_engine(store=store, upstream=upstream, models=asked["models"])))
            config = Settings.model_validate(asked)
            drain, metrics = Drain(spread=lambda _: 0.0), GatewayMetrics()
            keys = await stack.enter_async_context(key_ring(config, engine, drain))
            listening = await stack.enter_async_context(grpc_door(config, engine, keys, drain, metrics, new_session_id))
            assert listening is not None
            channel = aio.insecure_channel(
                f"127.0.0.1:{listening.port}", options=[("grpc.use_local_subchannel_pool", 1), *options]
            )
            await stack.enter_async_context(channel)
            return Door(engine, store, drain, metrics, listening, channel)

        yield start


@pytest.fixture
async def door(open_door: Open) -> Door:
    return await open_door()


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """After each test no task is left but the test's own."""
    before = asyncio.all_tasks()
    yield
    for _ in range(10):
        await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() - before - {asyncio.current_task()} if not task.done()]
    assert not left, left
