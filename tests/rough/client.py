"""A client of the chat door that keeps all it gets: every chunk, and when it came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp

from orchestrator.upstreams.playing import Play
from orchestrator.upstreams.script import parse
from orchestrator.upstreams.upstream import Delta

MARKER = "/script\n"


def text_of(script: str) -> str:
    """What an upstream says to this script when it is asked again."""
    play = Play(parse(MARKER + script), {}, earlier_calls=100)
    return "".join(action.content or "" for action in play.actions() if isinstance(action, Delta))


class Reading:
    """One request, read in the background. `chunks` are the data of its events, `times` when each came (monotonic)."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        """Of an answer that is no stream."""
        self.chunks: list[str] = []
        self.times: list[float] = []
        self.keepalives: list[float] = []
        self.began = time.monotonic()
        self.answered = 0.0
        self.ended = 0.0
        self.ending: Literal["", "whole", "broken"] = ""
        """`broken`: the connection was lost before the body was complete."""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, request: Any) -> None:
        self._task = asyncio.create_task(self._read(request))

    async def _read(self, request: Any) -> None:
        try:
            async with request as response:
                self.status, self.headers = response.status, {name.lower(): value for name, value in response.headers.items()}
                self.answered = time.monotonic()
                self._tell()
                if "event-stream" not in self.headers.get("content-type", ""):
                    self.body = await response.read()
                else:
                    await self._lines(response.content)
            self.ending = "whole"
        except (aiohttp.ClientError, ConnectionError):
            self.ending = "broken"
        finally:
            self.ended = time.monotonic()
            self._tell()

    async def _lines(self, content: aiohttp.StreamReader) -> None:
        async for line in content:
            if line.startswith(b"data: "):
                self.chunks.append(line[6:-1].decode())
                self.times.append(time.monotonic())
            elif line.startswith(b":"):
                self.keepalives.append(time.monotonic())
            self._tell()

    def _tell(self) -> None:
        self._changed.set()

    async def until(self, reached: Callable[[Reading], bool], within_s: float = 20.0) -> None:
        """Wait for what is to be seen of it."""
        async with asyncio.timeout(within_s):
            while not reached(self):
                assert not self.ending, f"it ended before: {self!r}"
                self._changed.clear()
                await self._changed.wait()

    async def said(self, words: int, within_s: float = 20.0) -> None:
        """Wait for so many words; the role is a chunk before them."""
        await self.until(lambda self: len(self.chunks) >= words + (words > 0) and self.status > 0, within_s)

    async def end(self, within_s: float = 60.0) -> None:
        assert self._task is not None
        async with asyncio.timeout(within_s):
            await asyncio.wait([self._task])

    async def leave(self) -> None:
        """Close the connection without a word."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    @property
    def run_id(self) -> str:
        return self.headers["x-workflow-id"]

    @property
    def text(self) -> str:
        return "".join(
            choice["delta"].get("content", "")
            for chunk in self.chunks
            if chunk != "[DONE]"
            for choice in json.loads(chunk).get("choices", ())
        )

    @property
    def done(self) -> bool:
        """It ended as a whole answer does: a finish reason, `[DONE]`, the end of the body, and nothing after any of them."""
        if self.ending != "whole" or self.chunks[-1:] != ["[DONE]"] or self.chunks.count("[DONE]") != 1:
            return False
        reasons = [choice["finish_reason"] for chunk in self.chunks[:-1] for choice in json.loads(chunk).get("choices", ())]
        return reasons[-1] is not None and reasons[:-1] == [None] * (len(reasons) - 1)

    @property
    def error(self) -> str | None:
        """The code of the error that it was answered with or that it ended with."""
        last = self.body.decode() or (self.chunks[-1] if self.chunks else "")
        if not last or last == "[DONE]":
            return None
        error = json.loads(last).get("error")
        return None if error is None else str(error["code"])

    def longest_silence(self, since: float = 0.0) -> float:
        """Between two chunks of which the later one came after `since`."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((later - earlier for earlier, later in pairs if later > since), default=0.0)

    def __repr__(self) -> str:
        return (
            f"Reading({self.status} {self.ending or 'open'}: {len(self.chunks)} chunks, last {self.chunks[-1:]}, {self.body!r})"
        )


class Client:
    """Asks any server. Readings that are still open are left when the client closes."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http
        self._readings: list[Reading] = []

    def ask(self, url: str, model: str, script: str, *, key: str | None = None, **body: Any) -> Reading:
        """A stream of this script. `key` makes it a repetition of others."""
        asked = {"model": model, "stream": True, "messages": [{"role": "user", "content": MARKER + script}], **body}
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._start(self._http.post(f"{url}/v1/chat/completions", json=asked, headers=headers))

    def resume(self, url: str, run_id: str, after: int = 0) -> Reading:
        """A run's stream again, after so many chunks."""
        query = {"stream": "true", "starting_after": str(after)}
        return self._start(self._http.get(f"{url}/v1/chat/completions/{run_id}", params=query))

    async def cancel(self, url: str, run_id: str) -> int:
        async with self._http.post(f"{url}/v1/chat/completions/{run_id}/cancel") as response:
            await response.read()
            return response.status

    async def ready(self, url: str) -> bool:
        async with self._http.get(f"{url}/readiness") as response:
            return response.status == 200

    async def runs(self, url: str) -> dict[str, str]:
        """The states of the latest hundred runs, by id."""
        async with self._http.get(f"{url}/api/v1/tasks", params={"limit": "100"}) as response:
            return {task["task_id"]: task["status"] for task in (await response.json())["tasks"]}

    async def metrics(self, url: str) -> dict[str, float]:
        """The server's numbers, by name and labels."""
        async with self._http.get(f"{url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    async def metric(self, url: str, name: str, reached: Callable[[float], bool], within_s: float = 30.0) -> float:
        """Wait until one of the server's numbers is as it should be."""
        async with asyncio.timeout(within_s):
            while not reached(value := (await self.metrics(url))[name]):  # noqa: ASYNC110 - it can only be asked for
                await asyncio.sleep(0.1)
            return value

    def _start(self, request: Any) -> Reading:
        reading = Reading()
        reading.start(request)
        self._readings.append(reading)
        return reading

    async def close(self) -> None:
        for reading in self._readings:
            await reading.leave()


@asynccontextmanager
async def client() -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        asking = Client(http)
        try:
            yield asking
        finally:
            await asking.close()
