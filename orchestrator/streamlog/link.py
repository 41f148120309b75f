"""Keeps one wire to Redis up: connects, introduces itself, and connects again when the wire is lost.

A wire counts as up only when Redis has answered a PING on it within the bound, so that a Redis which is too slow to be of use
looks like one that is away, and whoever calls finds out quickly.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from hiredis import ReplyError
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

from orchestrator.errors import Unavailable
from orchestrator.streamlog.wire import Command, Wire

_log = logging.getLogger(__name__)

_RETRY_FIRST_S = 0.05
_RETRY_MOST_S = 2.0

W = TypeVar("W", bound=Wire)


class Address:
    """Where Redis is and how to introduce oneself: `redis://`, `rediss://` or `unix://`, with redis-py's options."""

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = dict(parse_url(url))
        kind = options.pop("connection_class", Connection)
        # Never connected; it knows what each part of a URL means, and how a TLS context is made of it.
        self._form: Connection | UnixDomainSocketConnection = kind(**options)

    def __str__(self) -> str:
        """Without what is secret."""
        form = self._form
        return form.path if isinstance(form, UnixDomainSocketConnection) else f"{form.host}:{form.port}"

    async def connect(self, make: Callable[[], W]) -> W:
        loop = asyncio.get_running_loop()
        form = self._form
        if isinstance(form, UnixDomainSocketConnection):
            return (await loop.create_unix_connection(make, form.path))[1]
        ssl = form.ssl_context.get() if isinstance(form, SSLConnection) else None
        transport, wire = await loop.create_connection(make, form.host, form.port, ssl=ssl)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return wire

    def introduction(self) -> list[Command]:
        """The commands that begin a connection."""
        form = self._form
        commands: list[Command] = []
        if form.password:
            commands.append(("AUTH", form.username, form.password) if form.username else ("AUTH", form.password))
        if form.db:
            commands.append(("SELECT", int(form.db)))
        if form.client_name:
            commands.append(("CLIENT", "SETNAME", form.client_name))
        return [*commands, ("PING",)]


class Link(Generic[W]):
    """`make` builds a wire from what to call when it is lost; `up` and `down` are told what became of it."""

    def __init__(
        self,
        address: Address,
        make: Callable[[Callable[[Wire], None]], W],
        up: Callable[[W], None],
        down: Callable[[], None],
        *,
        connect_timeout_s: float,
    ) -> None:
        self._address = address
        self._make = make
        self._up = up
        self._down = down
        self._connect_timeout_s = connect_timeout_s
        self._wire: W | None = None
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="redis link")

    async def close(self) -> None:
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        self._task = None
        if (wire := self._wire) is not None:
            wire.drop()
            await self._lost.wait()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        delay = _RETRY_FIRST_S
        while True:
            try:
                wire = await self._connect()
            except (OSError, TimeoutError, Unavailable, ReplyError) as error:
                if delay == _RETRY_FIRST_S:
                    _log.warning("cannot reach Redis at %s, trying on: %s", self._address, str(error) or type(error).__name__)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _RETRY_MOST_S)
                continue
            self._lost.clear()
            self._wire = wire
            self._up(wire)
            began = loop.time()
            await self._lost.wait()
            _log.warning("lost a connection to Redis at %s, connecting again", self._address)
            delay = _RETRY_FIRST_S
            if loop.time() - began < _RETRY_MOST_S:
                await asyncio.sleep(delay)  # it is up but of little use: do not hammer it

    async def _connect(self) -> W:
        wire: W | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                wire = await self._address.connect(lambda: self._make(self._on_lost))
                await asyncio.gather(*(wire.send(command) for command in self._address.introduction()))
                return wire
        except BaseException:
            if wire is not None:
                wire.drop()
            raise

    def _on_lost(self, wire: Wire) -> None:
        if wire is self._wire:
            self._wire = None
            self._down()
            self._lost.set()
