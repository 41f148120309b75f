"""The multiplexed connection, against a server that answers as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import hiredis
import pytest

from orchestrator.streamlog.connection import Connection
from orchestrator.streamlog.link import Address
from orchestrator.streamlog.log import LogUnavailable

Command = list[bytes]


class Server:
    """Answers PING by itself and ECHO with its argument; `answer` may replace both. `reads` are what each read brought."""

    def __init__(self) -> None:
        self.reads: list[list[Command]] = []
        self.answer: Callable[[Command], bytes | None] = lambda command: None
        self.byte_by_byte = False
        self.greeted = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while data := await reader.read(65536):
            commands.feed(data)
            self.reads.append([])
            while command := commands.gets():
                self.reads[-1].append(command)
                await self._reply(command, writer)
        writer.close()

    async def _reply(self, command: Command, writer: asyncio.StreamWriter) -> None:
        reply = self.answer(command)
        if reply is None:
            reply = b"$%d\r\n%s\r\n" % (len(command[1]), command[1]) if command[0] == b"ECHO" else b"+PONG\r\n"
        if not self.byte_by_byte:
            writer.write(reply)
            return
        for byte in reply:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)


@pytest.fixture
async def server(tmp_path: Any) -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_unix_server(server.serve, tmp_path / "redis.sock"):
        yield server


@pytest.fixture
async def connection(server: Server, tmp_path: Any) -> AsyncIterator[Connection]:
    connection = Connection(Address(f"unix://{tmp_path}/redis.sock"), call_timeout_s=0.4, wait_s=0.2, max_pending=20)
    connection.start()
    await connection.ready()
    server.reads.clear()
    yield connection
    await connection.close()


async def test_commands_of_one_iteration_leave_in_one_write(server: Server, connection: Connection) -> None:
    replies = await asyncio.gather(*(connection.call(("ECHO", n)) for n in range(10)))
    assert replies == [str(n).encode() for n in range(10)]
    assert server.reads == [[[b"ECHO", str(n).encode()] for n in range(10)]]


async def test_replies_in_pieces(server: Server, connection: Connection) -> None:
    server.byte_by_byte = True
    assert await asyncio.gather(*(connection.call(("ECHO", "é" * n)) for n in range(3))) == [b"", "é".encode(), "éé".encode()]


async def test_each_reply_finds_its_command(server: Server, connection: Connection) -> None:
    """Also past commands that were refused, given up, or whose reply nobody can read."""

    def unreadable(reply: Any) -> None:
        raise ValueError(reply)

    server.answer = lambda command: b"-ERR no\r\n" if command[1:] == [b"bad"] else None
    tasks = [
        asyncio.create_task(connection.call(("ECHO", "1"))),
        asyncio.create_task(connection.call(("ECHO", "bad"))),
        asyncio.create_task(connection.call(("ECHO", "given up"))),
        asyncio.create_task(connection.call(("ECHO", "odd"), unreadable)),
        asyncio.create_task(connection.call(("ECHO", "2"), lambda reply: reply * 2)),
    ]
    await asyncio.sleep(0)
    tasks[2].cancel()
    replies = await asyncio.gather(*tasks, return_exceptions=True)
    assert [reply if isinstance(reply, bytes) else type(reply) for reply in replies] == [
        b"1",
        hiredis.ReplyError,
        asyncio.CancelledError,
        ValueError,
        b"22",
    ]


async def test_what_passes_by_itself_is_unavailability(server: Server, connection: Connection) -> None:
    for message in (
        "LOADING Redis is loading the dataset in memory",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "ERR Error running script (call to f_1): @user_script:35: -OOM command not allowed",
        "READONLY You can't write against a read only replica.",
    ):
        server.answer = lambda command, message=message: f"-{message}\r\n".encode()  # type: ignore[misc]
        with pytest.raises(LogUnavailable):
            await connection.call(("ECHO", "1"))


async def test_silence_is_bounded(server: Server, connection: Connection) -> None:
    loop = asyncio.get_running_loop()
    server.answer = lambda command: b""
    began = loop.time()
    results = await asyncio.gather(*(connection.call(("ECHO", n)) for n in range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [LogUnavailable] * 5
    assert 0.35 < loop.time() - began < 1.0


async def test_nothing_more_is_sent_to_a_redis_that_is_late(server: Server, connection: Connection) -> None:
    """Whoever comes later waits a little, and goes on if the answer comes after all."""
    server.answer = lambda command: b""
    first = asyncio.create_task(connection.call(("ECHO", "1")))
    await asyncio.wait([first], timeout=0.15)
    sent = len(server.reads)
    with pytest.raises(LogUnavailable):
        await connection.call(("ECHO", "2"))
    assert len(server.reads) == sent
    with pytest.raises(LogUnavailable):
        await first


async def test_what_waits_is_bounded(server: Server, connection: Connection) -> None:
    server.answer = lambda command: b""
    waiting = [asyncio.create_task(connection.call(("ECHO", n))) for n in range(20)]
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable, match="Too many"):
        await connection.call(("ECHO", "one more"))
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_garbage_from_the_server_is_a_lost_connection(server: Server, connection: Connection) -> None:
    server.answer = lambda command: b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(LogUnavailable):
        await connection.call(("ECHO", "1"))
    server.answer = lambda command: None
    assert await connection.call(("ECHO", "2")) == b"2"


@pytest.mark.parametrize(
    ("url", "introduction"),
    [
        ("redis://localhost", [("PING",)]),
        ("redis://:secret@localhost/3", [("AUTH", "secret"), ("SELECT", 3), ("PING",)]),
        ("rediss://me:a%2Fb@localhost:1?db=2", [("AUTH", "me", "a/b"), ("SELECT", 2), ("PING",)]),
        ("unix:///run/redis.sock?db=1&client_name=hg", [("SELECT", 1), ("CLIENT", "SETNAME", "hg"), ("PING",)]),
    ],
)
def test_an_address_introduces_itself(url: str, introduction: list[tuple[object, ...]]) -> None:
    assert Address(url).introduction() == introduction
