"""The `headgate` command against a server that loses connections: what it prints, where, and how it exits."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from headgate import __version__
from headgate.chat_door import Answer, ChatDoor, Chunk, Refused, ServerGone

RUN = "task-0123456789abcdef0123456789abcdef"


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **extras: Any) -> Chunk:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **extras}


CHUNKS = [
    chunk({"role": "assistant"}),
    chunk({"content": "It is "}),
    chunk({"content": "a gate…"}),
    chunk({}, "stop"),
    {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}},
]
KEEPALIVE = chunk({}, headgate_keepalive=True)


def frame(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()) + b"\n\n"


class FlakyDoor:
    """A chat door whose connections each do what the next entry of `plan` says with the frames that are due."""

    def __init__(self, *plan: Callable[[list[bytes]], list[bytes]], error: dict[str, Any] | None = None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.left = asyncio.Event()
        self._plan = list(plan)
        self._frames = [frame(item) for item in CHUNKS]
        self._ending = frame({"error": error}) if error else frame(b"[DONE]")

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        app.router.add_get("/v1/chat/completions/{id}", self.answer)
        app.router.add_get("/v1/models", self.models)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "headgate-demo"}, {"id": "other"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        received = int(request.query.get("starting_after", 0))
        frames = [*self._frames[received:], self._ending]
        act = self._plan.pop(0) if self._plan else whole
        if act is refuse:
            return web.json_response({"error": {"message": "Shutting down.", "code": "draining"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Workflow-ID": RUN})
        await response.prepare(request)
        for part in act(frames):
            await response.write(part)
        if act is hang:
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        if act is not whole and request.transport is not None:
            request.transport.abort()
        return response


def whole(frames: list[bytes]) -> list[bytes]:
    return [b": keepalive\n", frame(KEEPALIVE), b"".join(frames)]


def refuse(frames: list[bytes]) -> list[bytes]:
    return frames


def hang(frames: list[bytes]) -> list[bytes]:
    return frames[:2]


def cut_after(count: int, extra_bytes: int = 0) -> Callable[[list[bytes]], list[bytes]]:
    return lambda frames: [*frames[:count], frame(KEEPALIVE), frames[count][:extra_bytes]]


@asynccontextmanager
async def serving(door: FlakyDoor) -> AsyncIterator[str]:
    async with TestServer(door.app()) as server:
        yield str(server.make_url("")).rstrip("/")


async def collected(answer: Answer, into: list[Chunk] | None = None) -> list[Chunk]:
    into = [] if into is None else into
    async for item in answer.chunks():
        into.append(item)
    return into


class TestAnswer:
    """The stream itself: the chunks of a run, once each and in order, however often the connection is lost."""

    @pytest.mark.parametrize("extra_bytes", [0, 1, 6, 20])
    async def test_each_chunk_comes_once_whatever_was_cut(self, extra_bytes: int) -> None:
        flaky = FlakyDoor(cut_after(2, extra_bytes), cut_after(0, extra_bytes), refuse, cut_after(1, extra_bytes), whole)
        async with serving(flaky) as url, ChatDoor(url, backoff_s=(0.0, 0.0, 0.0)) as door:
            answer = door.ask({"model": "headgate-demo", "stream": True})
            assert await collected(answer) == CHUNKS
        resumed = f"/v1/chat/completions/{RUN}?stream=true&starting_after="
        assert flaky.requests == [
            ("POST", "/v1/chat/completions"),
            ("GET", resumed + "2"),
            ("GET", resumed + "2"),
            ("GET", resumed + "2"),
            ("GET", resumed + "3"),
        ]

    async def test_follows_a_run_from_a_position(self) -> None:
        async with serving(FlakyDoor()) as url, ChatDoor(url + "/v1/") as door:
            assert await collected(door.follow(RUN, 3)) == CHUNKS[3:]

    async def test_gives_up_when_the_connection_does_not_come_back(self) -> None:
        async with serving(FlakyDoor(cut_after(2), refuse, refuse, refuse)) as url, ChatDoor(url, backoff_s=(0.0, 0.0)) as door:
            with pytest.raises(ServerGone, match=f"does not come back. `headgate stream {RUN}`"):
                await collected(door.follow(RUN))

    async def test_progress_starts_the_pauses_over(self) -> None:
        async with serving(FlakyDoor(*[cut_after(1)] * len(CHUNKS))) as url, ChatDoor(url, backoff_s=(0.0,)) as door:
            assert await collected(door.follow(RUN)) == CHUNKS

    async def test_a_failed_run_is_an_error_after_its_chunks_and_is_not_asked_for_again(self) -> None:
        flaky = FlakyDoor(error={"message": "The upstream went away.", "code": "upstream_cut"})
        seen: list[Chunk] = []
        async with serving(flaky) as url, ChatDoor(url) as door:
            with pytest.raises(Refused, match="The upstream went away") as refusal:
                await collected(door.follow(RUN), into=seen)
        assert seen == CHUNKS
        assert refusal.value.code == "upstream_cut"
        assert len(flaky.requests) == 1

    async def test_a_question_that_nobody_heard_is_not_asked_twice(self) -> None:
        flaky = FlakyDoor(refuse)
        async with serving(flaky) as url, ChatDoor(url, backoff_s=(0.0,)) as door:
            with pytest.raises(Refused):
                await collected(door.ask({}))
        assert flaky.requests == [("POST", "/v1/chat/completions")]


async def headgate(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headgate", *arguments, stdin=-1, stdout=-1, stderr=-1, env={"HEADGATE_API_KEY": "k"}
    )
    out, err = await process.communicate(stdin)
    return process.returncode or 0, out.decode(), err.decode()


class TestCommand:
    """The process: its streams and its exit code."""

    async def test_submit_prints_the_answer_and_keeps_everything_else_apart(self) -> None:
        async with serving(FlakyDoor(cut_after(2))) as url:
            assert await headgate("submit", "--url", url, "What are you?") == (
                0,
                "It is a gate…\n",
                f"run {RUN}\nconnection lost after 2 chunks, trying again in 0.5 s\nfinish reason: stop, 3 + 4 tokens\n",
            )

    async def test_stream_prints_chunks_for_programs(self) -> None:
        async with serving(FlakyDoor()) as url:
            code, out, err = await headgate("stream", "--url", url, "--json", "--after", "1", RUN)
        assert (code, [json.loads(line) for line in out.splitlines()], err) == (0, CHUNKS[1:], "")

    async def test_a_failure_is_told_after_what_was_said(self) -> None:
        async with serving(FlakyDoor(error={"message": "The upstream went away.", "code": "upstream_cut"})) as url:
            assert await headgate("stream", "--url", url, RUN) == (
                1,
                "It is a gate…\n",
                "headgate: The upstream went away. (upstream_cut)\n",
            )

    async def test_models(self) -> None:
        async with serving(FlakyDoor()) as url:
            assert await headgate("models", "--url", url) == (0, "headgate-demo\nother\n", "")

    async def test_ctrl_c_leaves_and_the_server_notices(self) -> None:
        flaky = FlakyDoor(hang)
        async with serving(flaky) as url:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "headgate", "submit", "--url", url, "hello", stdout=-1, stderr=-1
            )
            assert process.stdout is not None
            assert await process.stdout.readexactly(6) == b"It is "
            process.send_signal(2)
            await asyncio.wait_for(flaky.left.wait(), 10)
            out, err = await process.communicate()
            assert (process.returncode, out, err.decode()) == (130, b"\n", f"run {RUN}\n")

    async def test_no_server(self) -> None:
        url = f"http://127.0.0.1:{unused_port()}"
        code, out, err = await headgate("submit", "--url", url, "hello")
        assert (code, out) == (3, "")
        assert (
            err == f"headgate: Nothing answers at {url}. Start one with `headgate serve`, or name another: --url, HEADGATE_URL.\n"
        )

    async def test_version_and_usage(self) -> None:
        assert await headgate("--version") == (0, f"headgate {__version__}\n", "")
        code, _, err = await headgate("strem")
        assert code == 2
        assert "invalid choice: 'strem'" in err
