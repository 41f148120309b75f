"""P23 on real sockets: every way in which a server misbehaves has one outcome, and secrets stay where they are."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from orchestrator.upstreams.config import OpenAIConfig
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.scripted_server import ScriptedServer
from orchestrator.upstreams.upstream import (
    Call,
    Delta,
    Finish,
    ModelCard,
    Note,
    Piece,
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
    Usage,
)

KEY = "sk-canary-1234567890"


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with upstream_session() as session:
        yield session


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer().running() as server:
        yield server


def upstream(session: aiohttp.ClientSession, base_url: str, **settings: Any) -> OpenAIUpstream:
    return OpenAIUpstream("local", OpenAIConfig(kind="openai", base_url=base_url, api_key=KEY, **settings), session)


def call(prompt: str = "hi", **body: Any) -> Call:
    return Call("task-1", "some-model", {"messages": [{"role": "user", "content": prompt}], **body})


async def told(upstream: OpenAIUpstream, request: Call) -> tuple[list[Piece], UpstreamError | None]:
    """All pieces, and how it failed if it did."""
    pieces: list[Piece] = []
    try:
        async with asyncio.timeout(10), aclosing(upstream.stream(request)) as answer:
            async for batch in answer:
                pieces.extend(batch)
    except UpstreamError as error:
        return pieces, error
    return pieces, None


A_B: list[Piece] = [Delta(0, "a"), Delta(0, " b")]
END: list[Piece] = [Finish(0, "stop"), Usage(4, 2, 6)]
SCRIPT = '/script usage 4 2; say "a b"'


async def test_an_answer(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    assert await told(upstream(session, server.base_url), call(SCRIPT)) == ([*A_B, *END], None)


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("packets 1", [*A_B, *END]),
        ("packets 7; newlines crlf", [*A_B, *END]),
        ("packets 1; newlines cr", [*A_B, *END]),
        ("whole", [Delta(0, "a b"), *END]),
        ("no role", [*A_B, *END]),
        ("blank 10KB", [*A_B, *END]),
        ("no usage", [*A_B, Finish(0, "stop"), Note("no_usage")]),
        ("no finish", [*A_B, Note("no_finish_reason"), *END]),
        ("no done", [*A_B, Finish(0, "stop"), Note("no_done"), END[1]]),
        ("broken", [*A_B, Note("broken_line"), *END]),
        ("line 100KB", [*A_B, Note("broken_line"), *END]),
        ("finish length", [*A_B, Finish(0, "length"), END[1]]),
        ("finish eos", [*A_B, *END]),
        ('refuse "no"', [*A_B, Delta(0, refusal="no"), *END]),
        ('reason "hm"', [*A_B, Delta(0, reasoning="hm"), *END]),
        ('call f "{"', None),
    ],
)
async def test_oddities_that_do_not_stop_an_answer(
    session: aiohttp.ClientSession, server: ScriptedServer, script: str, pieces: list[Piece] | None
) -> None:
    got, error = await told(upstream(session, server.base_url), call(f"{SCRIPT}; {script}"))
    assert error is None
    if pieces is None:
        tool = got[2].tool_calls[0] if isinstance(got[2], Delta) and got[2].tool_calls else {}
        pieces = [
            *A_B,
            Delta(0, tool_calls=[{"index": 0, "id": tool["id"], "type": "function", "function": {"name": "f", "arguments": ""}}]),
            Delta(0, tool_calls=[{"index": 0, "function": {"arguments": "{"}}]),
            Finish(0, "tool_calls"),
            END[1],
        ]
    assert got == pieces


@pytest.mark.parametrize("packets", [1, 3, 1000])
async def test_characters_split_over_packets(session: aiohttp.ClientSession, server: ScriptedServer, packets: int) -> None:
    text = "é漢😀\u2028\u2029\u0085 \\n"
    got, error = await told(upstream(session, server.base_url), call(f'/script packets {packets}; tokens "{text}"'))
    assert (got[0], error) == (Delta(0, "é漢😀\u2028\u2029\u0085 \n"), None)


@pytest.mark.parametrize(
    ("script", "pieces", "error", "status", "code"),
    [
        ("cut", A_B, UpstreamCut, 502, "upstream_cut"),
        ("cut mid", A_B, UpstreamCut, 502, "upstream_cut"),
        ("hang", A_B, UpstreamSilent, 504, "upstream_timeout"),
        ("broken; broken", [*A_B, Note("broken_line"), Note("broken_line")], UpstreamGarbled, 502, "upstream_protocol_error"),
        ("line 300KB", A_B, UpstreamGarbled, 502, "upstream_protocol_error"),
        ("line 10MB", A_B, UpstreamGarbled, 502, "upstream_protocol_error"),
        ("blank forever", A_B, UpstreamGarbled, 502, "upstream_protocol_error"),
        ('error "boom"', A_B, UpstreamRejected, 502, "upstream_rejected"),
        ("status 429 code rate_limit_exceeded", A_B, UpstreamRejected, 429, "rate_limit_exceeded"),
    ],
)
async def test_a_failure_after_the_first_output(
    session: aiohttp.ClientSession,
    server: ScriptedServer,
    script: str,
    pieces: list[Piece],
    error: type[UpstreamError],
    status: int,
    code: str,
) -> None:
    asked = upstream(session, server.base_url, idle_timeout_s=0.2, max_line_bytes=200_000, max_answer_bytes=3_000_000)
    got, failure = await told(asked, call(f"{SCRIPT}; {script}"))
    assert (got, type(failure)) == (pieces, error)
    assert failure is not None
    assert (failure.status, failure.code) == (status, code)


@pytest.mark.parametrize(
    ("script", "error", "status", "retryable"),
    [
        ("cut", UpstreamCut, 502, True),
        ("hang", UpstreamSilent, 504, True),
        ("garbage", UpstreamGarbled, 502, True),
        ("status 400", UpstreamRejected, 400, False),
        ("status 401", UpstreamRejected, 502, False),
        ("status 403", UpstreamRejected, 502, False),
        ("status 404", UpstreamRejected, 404, False),
        ("status 408", UpstreamRejected, 408, True),
        ("status 409", UpstreamRejected, 409, True),
        ("status 429", UpstreamRejected, 429, True),
        ("status 500", UpstreamRejected, 500, True),
        ("status 503", UpstreamRejected, 503, True),
    ],
)
async def test_a_failure_before_the_first_output(
    session: aiohttp.ClientSession, server: ScriptedServer, script: str, error: type[UpstreamError], status: int, retryable: bool
) -> None:
    got, failure = await told(upstream(session, server.base_url, idle_timeout_s=0.2), call(f"/script {script}"))
    assert (got, type(failure)) == ([], error)
    assert failure is not None
    assert (failure.status, failure.retryable) == (status, retryable)


async def test_a_rejection_keeps_its_facts(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    script = '/script status 429 retry-after 2 code slow_down "Not so fast"'
    _, failure = await told(upstream(session, server.base_url), call(script))
    assert failure is not None
    assert (failure.message, failure.code, failure.type, failure.retry_after_s) == (
        "Not so fast",
        "slow_down",
        "rate_limit_error",
        2.0,
    )


async def test_a_server_that_is_not_there(session: aiohttp.ClientSession) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for base_url in (f"http://127.0.0.1:{port}/v1", "http://no-such-host.invalid/v1"):
        _, failure = await told(upstream(session, base_url), call())
        assert isinstance(failure, UpstreamUnreachable)
        assert failure.message == "The upstream cannot be reached. Check its address and that it is running."


async def test_tls_that_fails(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    _, failure = await told(upstream(session, server.base_url.replace("http:", "https:")), call())
    assert isinstance(failure, UpstreamUnreachable)


async def test_a_server_that_never_accepts(session: aiohttp.ClientSession) -> None:
    """A full backlog lets a connection hang; the connect time-out is what ends it."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            asked = upstream(session, f"http://127.0.0.1:{full.getsockname()[1]}/v1", connect_timeout_s=0.2, idle_timeout_s=5)
            _, failure = await told(asked, call())
        finally:
            for one in waiting:
                one.close()
    assert isinstance(failure, UpstreamUnreachable)


async def test_the_whole_answer_has_a_limit_in_time(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    asked = upstream(session, server.base_url, total_timeout_s=0.3)
    got, failure = await told(asked, call('/script repeat forever; say "a"; wait 20ms; end'))
    assert got[0] == Delta(0, "a")
    assert isinstance(failure, UpstreamTooSlow)
    assert failure.retryable is False


async def test_an_answer_that_is_always_ahead_has_a_limit_in_time_too(
    session: aiohttp.ClientSession, server: ScriptedServer
) -> None:
    """With data at hand nothing ever waits for the socket, and a timer that looks only then would never fire."""
    asked = upstream(session, server.base_url, total_timeout_s=0.2)
    async with aclosing(asked.stream(call("/script repeat forever; say 1000 words; end"))) as answer:
        await anext(answer)
        await asyncio.sleep(0.3)  # time itself is what is tested
        with pytest.raises(UpstreamTooSlow):
            await anext(answer)


async def test_a_deadline_in_the_past_asks_nobody(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    asked = OpenAIUpstream("local", OpenAIConfig(kind="openai", base_url=server.base_url), session, clock=lambda: 10.0)
    request = call(SCRIPT)
    _, failure = await told(asked, Call(request.run_id, request.model, request.body, deadline_ms=9_999))
    assert isinstance(failure, UpstreamTooSlow)
    assert list(server.witness.calls) == []


async def test_leaving_closes_the_socket(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    async with aclosing(upstream(session, server.base_url).stream(call('/script say "a"; hang'))) as answer:
        assert await anext(answer) == [Delta(0, "a")]
        record = await server.witness.nth(0)
        assert record.ending is None
    async with asyncio.timeout(0.25):
        await record.closed.wait()
    assert record.ending == "cancelled"


async def test_cancelling_before_the_first_token_closes_the_socket(
    session: aiohttp.ClientSession, server: ScriptedServer
) -> None:
    task = asyncio.create_task(told(upstream(session, server.base_url), call("/script hang")))
    record = await server.witness.nth(0)
    task.cancel()
    async with asyncio.timeout(0.25):
        await record.closed.wait()
    assert record.ending == "cancelled"
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_reader_that_stops_stops_the_server(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    """Back-pressure reaches the socket: the server stands still after what the buffers between hold, and memory stays flat."""
    script = "/script repeat forever; say 100 words; end"
    async with aclosing(upstream(session, server.base_url).stream(call(script))) as answer:
        await anext(answer)
        record = await server.witness.nth(0)
        before = -1
        while record.pieces != before:
            before = record.pieces
            await asyncio.sleep(0.1)  # there is no event for "nothing happens any more"
        assert 0 < record.pieces < 40_000
        for _ in range(5):
            await anext(answer)
    async with asyncio.timeout(0.25):
        await record.closed.wait()
    assert record.ending == "cancelled"


async def test_endless_deltas_are_refused_with_flat_memory(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    word = "x" * 30_000
    asked = upstream(session, server.base_url, max_answer_bytes=20_000_000)
    tracemalloc.start()
    try:
        count, failure = 0, None
        try:
            async with (
                asyncio.timeout(10),
                aclosing(asked.stream(call(f'/script repeat forever; tokens "{word}"; end'))) as answer,
            ):
                async for batch in answer:
                    count += len(batch)
        except UpstreamGarbled as error:
            failure = error
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert failure is not None
    assert 500 < count < 670
    assert peak < 6_000_000


async def test_connections_are_used_again(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    """A body read to its end leaves its connection in the pool; a new one for each call would cost a handshake each."""
    asked = upstream(session, server.base_url)
    for _ in range(5):
        await told(asked, call(SCRIPT))
    assert len(set(server.peers)) == 1


async def test_a_body_that_ends_a_moment_after_done_leaves_its_connection_too(session: aiohttp.ClientSession) -> None:
    """Servers write the end of the body on its own. Leaving at `[DONE]` would close every connection after one call."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(f"{len(STREAM):x}\r\n{STREAM}\r\n".encode())
            await asyncio.sleep(0.005)
            writer.write(b"0\r\n\r\n")
        writer.close()

    calls: list[Sequence[Piece]] = []
    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        asked = upstream(session, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1")
        calls += [(await told(asked, call()))[0] for _ in range(3)]
    assert (calls, connections) == ([OK, OK, OK], 1)


@asynccontextmanager
async def answering(respond: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """A server that answers everything with what `respond` returns."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = respond(request)
        if inspect.isawaitable(response):
            response = await response
        assert isinstance(response, web.StreamResponse)
        return response

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def body(text: str | bytes, kind: str, status: int = 200, **headers: str) -> Callable[[web.Request], web.Response]:
    data = text.encode() if isinstance(text, str) else text
    return lambda _: web.Response(status=status, body=data, headers={"Content-Type": kind, **headers})


CHUNK = '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}'
STREAM = f"data: {CHUNK}\n\ndata: [DONE]\n\n"
OK = [Delta(0, "a"), Finish(0, "stop"), Note("no_usage")]


@pytest.mark.parametrize(
    ("respond", "pieces", "error"),
    [
        (body(STREAM, "text/event-stream"), OK, None),
        (body(STREAM, "text/plain"), OK, None),
        (body(STREAM, "application/octet-stream"), OK, None),
        (body('{"error": {"message": "no", "code": "model_not_found"}}', "application/json"), [], UpstreamRejected),
        (body('{"error": {"message": "no"}}', "text/event-stream"), [], UpstreamRejected),
        (body('{"hello": 1}', "application/json"), [], UpstreamGarbled),
        (body("{", "application/json"), [], UpstreamGarbled),
        (body("<html>", "text/html; charset=utf-8"), [], UpstreamGarbled),
        (body("Bad gateway", "text/plain"), [], UpstreamGarbled),
        (body("", "text/event-stream"), [], UpstreamCut),
        (body("", "text/plain", 204), [], UpstreamGarbled),
        (body("", "text/plain", 302, Location="http://127.0.0.1:1/elsewhere"), [], UpstreamGarbled),
        (body("<h1>502</h1>", "text/html", 502), [], UpstreamRejected),
        (body(CHUNK[:-1] + " " * 3_000_000 + "}", "application/json"), [], UpstreamGarbled),
    ],
)
async def test_bodies(
    session: aiohttp.ClientSession,
    respond: Callable[[web.Request], web.Response],
    pieces: Sequence[Piece],
    error: type[UpstreamError] | None,
) -> None:
    async with answering(respond) as base_url:
        got, failure = await told(upstream(session, base_url, max_answer_bytes=2_000_000), call())
    assert (got, type(failure) if failure else None) == (pieces, error)


async def test_a_server_that_speaks_no_http(session: aiohttp.ClientSession) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        _, failure = await told(upstream(session, f"http://127.0.0.1:{port}/v1"), call())
    assert isinstance(failure, UpstreamGarbled)


async def test_the_request_goes_out_as_it_came(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    extra = {"temperature": 0, "tools": [], "top_k": 5, "provider": {"order": ["a"]}, "seed": None}
    await told(upstream(session, server.base_url, headers={"X-Title": "Headgate"}), call(SCRIPT, **extra))
    sent = server.witness.calls[0].body
    assert sent == {
        "messages": [{"role": "user", "content": SCRIPT}],
        **extra,
        "model": "some-model",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert {name: headers.get(name) for name in ("authorization", "x-title", "accept-encoding", "cookie")} == {
        "authorization": f"Bearer {KEY}",
        "x-title": "Headgate",
        "accept-encoding": "identity",
        "cookie": None,
    }


async def test_what_the_configuration_changes_about_a_request(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    asked = upstream(session, server.base_url, developer_role=False, usage=False, continues=True)
    messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": SCRIPT}]
    await told(asked, Call("task-1", "m", {"messages": messages}, prefix="a"))
    assert server.witness.calls[0].body == {
        "messages": [{"role": "system", "content": "be"}, messages[1], {"role": "assistant", "content": "a"}],
        "model": "m",
        "stream": True,
        "add_generation_prompt": False,
        "continue_final_message": True,
    }


async def test_a_server_asked_for_whole_answers(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    assert await told(upstream(session, server.base_url, stream=False), call(SCRIPT)) == ([Delta(0, "a b"), *END], None)
    assert server.witness.calls[0].body["stream"] is False


async def test_several_choices(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    got, error = await told(upstream(session, server.base_url), call('/script say "a"; usage 1 2', n=2))
    assert (got, error) == ([Delta(0, "a"), Delta(1, "a"), Finish(0, "stop"), Finish(1, "stop"), Usage(1, 2, 3)], None)


async def test_models(session: aiohttp.ClientSession, server: ScriptedServer) -> None:
    assert await upstream(session, server.base_url).models() == [ModelCard("scripted", 1, "me")]
    async with answering(body("[]", "application/json")) as base_url:
        with pytest.raises(UpstreamGarbled):
            await upstream(session, base_url).models()
    async with answering(body("{}", "application/json", 401)) as base_url:
        with pytest.raises(UpstreamRejected):
            await upstream(session, base_url).models()


async def test_what_a_text_means(session: aiohttp.ClientSession) -> None:
    asked: list[Any] = []

    async def respond(request: web.Request) -> web.Response:
        asked.append((request.path, await request.json(), request.headers["Authorization"]))
        return web.json_response({"object": "list", "data": [{"embedding": [0.5, 0, -2e-3]}], "usage": {"total_tokens": 1}})

    async with answering(respond) as base_url:
        assert await upstream(session, base_url).embed("small", "hällo") == [0.5, 0.0, -0.002]
    sent = {"model": "small", "input": "hällo", "encoding_format": "float"}
    assert asked == [("/v1/embeddings", sent, f"Bearer {KEY}")]


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        ("{}", 200, UpstreamGarbled),
        ('{"data": []}', 200, UpstreamGarbled),
        ('{"data": [{"embedding": []}]}', 200, UpstreamGarbled),
        ('{"data": [{"embedding": [0, 0.0]}]}', 200, UpstreamGarbled),
        ('{"data": [{"embedding": [NaN]}]}', 200, UpstreamGarbled),
        ('{"data": [{"embedding": "AAAA"}]}', 200, UpstreamGarbled),
        ('{"data": [{"embedding": [1]}, {"embedding": [1]}]}', 200, UpstreamGarbled),
        ("\ud800", 200, UpstreamGarbled),
        ("{}", 429, UpstreamRejected),
    ],
)
async def test_what_is_no_embedding(session: aiohttp.ClientSession, answer: str, status: int, error: type[UpstreamError]) -> None:
    content = answer.encode("utf-8", "surrogatepass")
    async with answering(lambda _: web.Response(body=content, content_type="application/json", status=status)) as base_url:
        with pytest.raises(error):
            await upstream(session, base_url).embed("small", "text")


async def test_secrets_and_addresses_stay_here(session: aiohttp.ClientSession) -> None:
    """Servers like to quote the key and their own address; clients of ours must see neither."""

    def respond(request: web.Request) -> web.Response:
        text = f"bad key {KEY} (X-Secret: shh-shh) at {request.url} and {request.host}, proxied to 10.1.2.3:8000"
        envelope = {"error": {"message": text, "code": KEY, "param": request.host, "type": KEY}}
        return web.Response(status=int(request.headers["X-Status"]), body=json.dumps(envelope), content_type="application/json")

    async with answering(respond) as base_url:
        for status in ("200", "400", "401", "403", "429", "500"):
            asked = upstream(session, base_url, headers={"X-Status": status, "X-Secret": "shh-shh"})
            _, failure = await told(asked, call())
            assert failure is not None
            seen = json.dumps([str(failure), failure.message, failure.code, failure.param, failure.type])
            for secret in (KEY, "shh-shh", "127.0.0.1", base_url.split(":")[2].split("/")[0], "10.1.2.3"):
                assert secret not in seen, (status, secret)
        assert KEY not in repr(upstream(session, base_url)._config)
