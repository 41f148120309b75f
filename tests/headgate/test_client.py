"""The client for ordinary programs: the asynchronous one, seen from threads without a loop."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest

import headgate
from headgate import AsyncClient, AsyncTaskHandle, Backoff, Client, TaskHandle
from headgate.errors import ServerGone
from headgate.loop_thread import LoopThread
from tests.headgate.flaky import EVENTS, MS, RUN, FlakyServer, cut_after, hang, refuse, serving


@contextmanager
def threaded(server: FlakyServer) -> Iterator[str]:
    """Served by a loop in another thread, so that the test may block."""

    async def serve(url: list[str], started: threading.Event, loop: list[Any]) -> None:
        stop = asyncio.Event()
        async with serving(server) as address:
            url.append(address)
            loop.extend((asyncio.get_running_loop(), stop))
            started.set()
            await stop.wait()

    url: list[str] = []
    loop: list[Any] = []
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(url, started, loop)))
    thread.start()
    started.wait(10)
    try:
        yield url[0]
    finally:
        loop[0].call_soon_threadsafe(loop[1].set)
        thread.join()


def builtins(events: Any) -> list[Any]:
    return [msgspec.to_builtins(event) for event in events]


@pytest.mark.parametrize("transport", ["sse", "ws"])
def test_a_stream_survives_its_connections(transport: Any) -> None:
    server = FlakyServer(cut_after(2), refuse, cut_after(1))
    with threaded(server) as url, Client(url, backoff=Backoff(first_s=0.0)) as client:
        task, stream = client.submit_and_stream("Why?", model="m")
        assert isinstance(task, TaskHandle)
        assert next(stream).seq == 1
        assert stream.position == f"{MS}-1"
        assert builtins(stream) == list(EVENTS[1:])
        assert builtins(task.stream(transport=transport, last_event_id=4)) == list(EVENTS[4:])
        assert (task.wait().status, task.result()) == ("COMPLETED", "It is a gate…")


@pytest.mark.parametrize("leave", ["break", "close", "with"])
@pytest.mark.parametrize("transport", ["sse", "ws"])
def test_leaving_a_stream_closes_its_connection(leave: str, transport: Any) -> None:
    server = FlakyServer(hang)
    with threaded(server) as url, Client(url) as client:
        stream = client.stream(RUN, transport=transport)
        if leave == "with":
            with stream:
                next(stream)
        else:
            for _ in stream:
                break
            if leave == "close":
                stream.close()
            else:
                del stream
        for _ in range(1000):
            if server.left.is_set():
                break
            client.models()  # each takes a turn of the server's loop
        assert server.left.is_set()


def test_errors_arrive_in_the_thread_that_asked() -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ServerGone):
            client.get(RUN)
        with pytest.raises(ServerGone):
            list(client.stream(RUN))


def test_a_closed_client_says_so_and_closes_once() -> None:
    client = Client()
    stream = client.stream(RUN)
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.models()
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_the_thread_ends_with_the_client() -> None:
    before = threading.active_count()
    client = Client()
    assert threading.active_count() == before + 1
    del client
    for thread in threading.enumerate():
        if thread.name == "headgate-client":
            thread.join(10)
    assert threading.active_count() == before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process in the background, as CI's and pytest's workers may be, is born deaf to interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_whoever_is_interrupted_while_waiting_cancels_the_work() -> None:
    cancelled = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(0.05)  # no event says that the other thread waits in the kernel
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def farewell() -> None:
        return

    thread = LoopThread(farewell)
    with pytest.raises(KeyboardInterrupt):
        thread.run(work())
    assert cancelled.wait(10)
    thread.close()


_FORGETFUL = """\
import sys
from headgate import Client
client = Client(sys.argv[1])
stream = client.stream(sys.argv[2], transport=sys.argv[3])
print(next(stream).type)
"""


@pytest.mark.parametrize("transport", ["sse", "ws"])
def test_an_interpreter_exits_with_a_stream_still_open(transport: str) -> None:
    server = FlakyServer(hang)
    with threaded(server) as url:
        command = [sys.executable, "-X", "dev", "-W", "error", "-c", _FORGETFUL, url, RUN, transport]
        ran = subprocess.run(command, capture_output=True, timeout=30, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "WORKFLOW_STARTED\n")
    assert "Traceback" not in ran.stderr, ran.stderr


@pytest.mark.parametrize(("ours", "theirs"), [(Client, AsyncClient), (TaskHandle, AsyncTaskHandle)])
def test_both_clients_offer_the_same(ours: type, theirs: type) -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(method).parameters) for name, method in methods if not name.startswith("_")}

    assert offered(ours) == offered(theirs)


def test_everything_that_is_exported_is_there() -> None:
    for name in headgate.__all__:
        assert getattr(headgate, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Clint'"):
        _ = headgate.Clint
