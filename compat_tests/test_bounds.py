"""What readers cost: the slow cost nobody else anything, and those who are gone leave nothing behind (P15, P24)."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import pytest

from compat_tests.doors import DOORS, MISSING, SSE, Door, Refused, Server
from compat_tests.manifest import promise
from compat_tests.raw import script
from compat_tests.stage import Stage, staged
from compat_tests.watch import reading, seen, shown, watching

PIECE = "x" * 1000
PIECES = 6000
"""Together more than sockets, HTTP/2 windows and the ring hold, so that a reader who does not read holds up its sender."""


@promise("doors.slow")
def test_readers_who_do_not_read_hold_up_nobody_and_miss_nothing(here: Server, there: Server) -> None:
    """design.md §1.3, P15: a frozen reader at each door, and beside them readers who are done when the run is."""
    run = here.submit("demo-none", script("wait 300ms", f'repeat {PIECES}; tokens "{PIECE}"; end'))
    with ExitStack() as frozen, watching() as start:
        slow = {door: frozen.enter_context(door.read(here, run)) for door in DOORS.values()}
        for events in slow.values():
            assert next(events)["type"] == "WORKFLOW_STARTED"
        fast = {door: start(lambda door=door: reading(door, there, run)) for door in DOORS.values()}  # type: ignore[misc]
        for door, watch in fast.items():
            seqs = [event["seq"] for event in watch.end()[:-1]]
            assert seqs == list(range(1, PIECES + 6))
            said = [event["message"] for event in watch.events if event["type"] == "LLM_PARTIAL"]
            assert "".join(said) == PIECE * PIECES
            assert list(slow[door]) == watch.events[1:]


@promise("doors.no-leak")
def test_readers_who_are_gone_leave_nothing_behind(here: Server, there: Server) -> None:
    """P24: streams and descriptors are what they were, after readers who were refused, hung up, vanished, or stayed."""
    with staged(here) as stage:
        before = {server: open_things(server) for server in (here, there)}
        for server in (here, there):
            for door in DOORS.values():
                with pytest.raises(Refused):
                    seen(door, server, MISSING)
                assert len(seen(door, server, ended(stage))) > 3
                with ExitStack() as streams:
                    for _ in range(5):
                        assert next(streams.enter_context(door.read(server, stage.run)))["seq"] == 1
                    streams_open, _ = open_things(server)
                    assert streams_open >= before[server][0] + 5
            with vanishing(server, stage.run) as clients:
                assert len(clients) == 5
        for server in (here, there):
            settled(server, before[server])


def ended(stage: Stage) -> str:
    run = stage.server.submit("demo-none", script('say "over"'))
    assert seen(DOORS["sse"], stage.server, run)
    return run


@contextmanager
def vanishing(server: Server, run: str) -> Iterator[list[socket.socket]]:
    """Clients of the event stream that are reset without a word."""
    address = urlsplit(server.url)
    headers = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items())
    clients = []
    for _ in range(5):
        client = socket.create_connection((address.hostname or "", address.port or 0), 5)
        client.sendall(f"GET {SSE}?workflow_id={run} HTTP/1.1\r\nHost: {address.netloc}\r\n{headers}\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        clients.append(client)
    yield clients
    for client in clients:
        client.close()


def open_things(server: Server) -> tuple[int, int]:
    """Streams and file descriptors, as the server counts them."""
    numbers = server.raw.send("GET", "/metrics").body.decode()
    streams, descriptors = (
        re.search(rf"^{name} (\S+)$", numbers, re.MULTILINE) for name in ("headgate_active_streams", "process_open_fds")
    )
    assert streams is not None
    assert descriptors is not None
    return int(float(streams[1])), int(float(descriptors[1]))


def settled(server: Server, before: tuple[int, int]) -> None:
    """As few things are open as before, within a moment; one may be a client's connection that is kept for another request."""
    begun = time.monotonic()
    while True:
        streams, descriptors = open_things(server)
        if streams <= before[0] and descriptors <= before[1] + 2:
            return
        assert time.monotonic() - begun < 5, (before, (streams, descriptors))
        time.sleep(0.05)


@promise("doors.reader-leaves", "doors.no-leak")
def test_a_stream_that_is_left_early_costs_its_run_nothing(here: Server, door: Door) -> None:
    """§1 [18], P24: the run goes on, and other readers do."""
    with staged(here) as stage, door.read(here, stage.run) as staying:
        for _ in range(3):
            with door.read(here, stage.run) as leaving:
                assert next(leaving)["seq"] == 1
        stage.say("X_STILL_HERE")
        assert [next(staying) for _ in range(3)] == shown(door, stage.log())
