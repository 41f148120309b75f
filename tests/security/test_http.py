"""Attacks on HTTP itself: two requests in one's clothes, framing that two parsers read differently, headers inside of headers.

Every request of the table is followed at once by a second one, which would start a run. What is refused is answered once and the
connection is closed, so the second reaches no handler; what is legal is answered with the second as what it is, another request.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from tests.gateway.http.native import MISSING, bearer, begin, settings
from tests.gateway.http.sockets import handshake

CHAT = "/v1/chat/completions"
_ASK = b'{"model":"headgate-demo","messages":[{"role":"user","content":"smuggled"}]}'
_HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\nContent-Type: application/json\r\n".encode()
SMUGGLED = _HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(_ASK) + _ASK

CHUNKED = b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SIZED = b"POST /health HTTP/1.1\r\nHost: x\r\n"
GET = b"GET /health HTTP/1.1\r\n"


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def attack(server: Any, sent: bytes) -> list[int]:
    """The statuses of all that was answered before the connection was closed."""
    return [answer.status for answer in await server.raw(sent + SMUGGLED)]


REFUSED = {
    "lengths that disagree": SIZED + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "lengths that agree": SIZED + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "lengths in a list": SIZED + b"Content-Length: 5, 5\r\n\r\nhello",
    "no length": SIZED + b"Content-Length: \r\n\r\n",
    "a signed length": SIZED + b"Content-Length: +5\r\n\r\nhello",
    "a negative length": SIZED + b"Content-Length: -5\r\n\r\nhello",
    "a length in hex": SIZED + b"Content-Length: 0x5\r\n\r\nhello",
    "a length with an underscore": SIZED + b"Content-Length: 1_0\r\n\r\nhello",
    "a length in foreign digits": SIZED + "Content-Length: \u0665\r\n\r\nhello".encode(),
    "a length beyond all bounds": SIZED + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "a space before the colon of a length": SIZED + b"Content-Length : 5\r\n\r\nhello",
    "length and chunks": SIZED + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": SIZED + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked twice": SIZED + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice in a list": SIZED + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": SIZED + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": SIZED + b"Transfer-Encoding: identity\r\n\r\n",
    "almost chunked": SIZED + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in quotes": SIZED + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked after a vertical tab": SIZED + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked before a NUL": SIZED + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n",
    "chunked with a kelvin sign": SIZED + "Transfer-Encoding: chun\u212aed\r\n\r\n0\r\n\r\n".encode(),
    "a space before the colon of chunked": SIZED + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked on a folded line": SIZED + b"A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n",
    "two hosts": GET + b"Host: x\r\nHost: y\r\n\r\n",
    "the same host twice": GET + b"Host: x\r\nHost: x\r\n\r\n",
    "no host": GET + b"\r\n",
    "a folded header": GET + b"Host: x\r\nA: b\r\n folded\r\n\r\n",
    "a folded first header": GET + b" Host: x\r\n\r\n",
    "bare LF": GET.replace(b"\r", b"") + b"Host: x\n\n",
    "one bare LF": GET + b"Host: x\nA: b\r\n\r\n",
    "a bare LF at the end": GET + b"Host: x\r\n\n",
    "bare CR": GET + b"Host: x\r\nA: b\rC: d\r\n\r\n",
    "NUL in a value": GET + b"Host: x\r\nA: b\0c\r\n\r\n",
    "no name": GET + b"Host: x\r\n: b\r\n\r\n",
    "no colon": GET + b"Host: x\r\nbad header\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/1.2": b"GET /health HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2 by its name": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/2 by its preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "tabs in the request line": b"GET\t/health\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "a control character in the path": b"GET /health\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
    "too many headers": GET + b"Host: x\r\n" + b"A: b\r\n" * 200 + b"\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
async def test_what_two_parsers_could_read_differently_is_refused_and_closed(server: Any, witness: Any, sent: bytes) -> None:
    assert await attack(server, sent) == [400]
    assert len(witness.calls) == 0


BROKEN_CHUNKS = {
    "no size": b"zz\r\n",
    "a signed size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a size in 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a size and a space": b"5 \r\nhello\r\n0\r\n\r\n",
    "a size beyond all bounds": b"FFFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
    "less than the size": b"6\r\nhello\r\n0\r\n\r\n",
    "more than the size": b"4\r\nhello\r\n0\r\n\r\n",
    "bare LF": b"5\nhello\n0\n\n",
    "bare LF after an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "a folded trailer": b"5\r\nhello\r\n0\r\nA: b\r\n folded\r\n\r\n",
}


@pytest.mark.parametrize("chunks", BROKEN_CHUNKS.values(), ids=BROKEN_CHUNKS)
async def test_broken_chunks_are_refused_and_closed(server: Any, witness: Any, chunks: bytes) -> None:
    """By a route that reads them, and by one that has answered before (405): what follows is never a request."""
    head = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert await attack(server, head + chunks) == [400]
    assert set(await attack(server, CHUNKED + chunks)) <= {400, 405}
    assert len(witness.calls) == 0


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"deflate,chunked", b"x, chunked"])
async def test_codings_that_nobody_here_knows(server: Any, witness: Any, coding: bytes) -> None:
    """RFC 9112, 6.1: 501. aiohttp would hand on what is still compressed."""
    sent = _HEAD + b"Transfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n"
    assert await attack(server, sent) == [501]
    assert len(witness.calls) == 0


@pytest.mark.parametrize("host", [b"x, y", b"a/b", b"a@b", b"a b", b"a?b", b"x:80:80", b"x:port", b"[::1", "ä".encode(), b'"x"'])
async def test_a_host_that_is_none(server: Any, host: bytes) -> None:
    """RFC 9112, 3.2. Proxies route by it, and pages are known by it."""
    (answer,) = await server.raw(GET + b"Host: " + host + b"\r\n\r\n" + SMUGGLED)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_host")


@pytest.mark.parametrize("host", [b"x", b"X.example:8080", b"[::1]:8080", b"127.0.0.1", b"a_b.local", b""])
async def test_hosts_that_are(server: Any, host: bytes) -> None:
    (answer,) = await server.raw(GET + b"Connection: close\r\nHost: " + host + b"\r\n\r\n")
    assert answer.status == 200


# Legal, and nothing else than what the standard says

# Chunks' extensions are skipped, not kept; how long they may take is bounded by the time for the body.
LEGAL = {
    "a body where none is wanted": (GET + b"Host: x\r\nContent-Length: 5\r\n\r\nhello", 200),
    "chunks where none are wanted": (GET + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200),
    "chunked in capitals": (SIZED + b"Transfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n", 405),
    "an empty line before": (b"\r\n" + GET + b"Host: x\r\n\r\n", 200),
    "an absolute target": (b"GET http://other/health HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "a length that hops": (SIZED + b"Connection: content-length\r\nContent-Length: 5\r\n\r\nhello", 405),
    "an extension of a chunk, however long": (CHUNKED + b"5;" + b"a" * 200_000 + b"\r\nhello\r\n0\r\n\r\n", 405),
    "zeros before a size, however many": (CHUNKED + b"0" * 200_000 + b"5\r\nhello\r\n0\r\n\r\n", 405),
    "a request in a body": (SIZED + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED, 405),
}


@pytest.mark.parametrize(("sent", "status"), LEGAL.values(), ids=LEGAL)
async def test_a_pipelined_request_is_the_second_one(server: Any, witness: Any, sent: bytes, status: int) -> None:
    assert await attack(server, sent) == [status, 200]
    assert len(witness.calls) == 1


async def test_what_is_pipelined_behind_a_stream_waits_for_its_end(server: Any) -> None:
    run = await begin(server, "say 3 words")
    stream = f"GET /api/v1/stream/sse?workflow_id={run} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-a\r\n\r\n".encode()
    first, second = await server.raw(stream + GET + b"Host: x\r\nConnection: close\r\n\r\n")
    assert first.body.endswith(b"event: done\ndata: [DONE]\n\n"), first.body[-100:]
    assert (second.status, second.json) == (200, {"status": "ok"})


# Upgrades

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("behind", [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", SMUGGLED, SMUGGLED[:100]])
async def test_h2c_is_answered_in_http_1_and_closed(server: Any, witness: Any, behind: bytes) -> None:
    """curl and Java ask for it, so it is no error. What comes with it is not read as a request, and neither is what comes next:
    aiohttp forgets bytes behind such a request, so it could not know where the next one begins.
    """
    answers = await server.raw(GET + b"Host: x\r\n" + H2C + b"\r\n" + behind)
    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(200, "close")]
    assert "upgrade" not in answers[0].headers
    assert len(witness.calls) == 0


async def test_a_body_that_comes_with_h2c_is_read(server: Any) -> None:
    """As Java's client sends it, in two packets."""
    async with server.connection() as (reader, writer):
        writer.write(_HEAD + H2C + b"Content-Length: %d\r\n\r\n" % len(_ASK) + _ASK[:10])
        await asyncio.sleep(0)
        writer.write(_ASK[10:])
        answer = await server.read(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await reader.read() == b""


async def test_a_refused_upgrade_is_no_way_past_the_door(server: Any, witness: Any) -> None:
    """A proxy that believes in the upgrade would pass on all that follows, unread."""
    answers = await server.raw(handshake(MISSING, "Authorization: Bearer sk-a") + SMUGGLED)
    assert [(answer.status, answer.headers["connection"]) for answer in answers] == [(404, "close")]
    assert len(witness.calls) == 0


# Expect


@pytest.mark.parametrize(("expect", "status"), [(b"tea", 417), (b"100-continue, tea", 417)])
async def test_expectations_that_cannot_be_met(server: Any, expect: bytes, status: int) -> None:
    (answer,) = await server.raw(_HEAD + b"Expect: " + expect + b"\r\nContent-Length: 5\r\n\r\n", first=True)
    assert answer.status == status


async def test_a_body_that_was_never_sent_is_no_request(server: Any, witness: Any) -> None:
    """The client expects 100, is refused, and sends the body anyway, which looks like a request."""
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(SMUGGLED)}\r\n\r\n"
    answers = await server.raw(head.encode() + SMUGGLED + GET + b"Host: x\r\nConnection: close\r\n\r\n")
    assert [answer.status for answer in answers] == [401, 200]
    assert len(witness.calls) == 0


# Headers inside of headers

_LINE_ENDS = ["\r\n", "\n", "\r", "\u2028", "\x85", "%0d%0a", "\0", "\u560a\u560d"]
"""The last becomes a line's end where somebody keeps only the low bytes."""

EVIL = [f"a{end}X-Evil: 1" for end in _LINE_ENDS]


@pytest.mark.parametrize("evil", EVIL)
async def test_nothing_that_is_echoed_becomes_a_header(server: Any, evil: str) -> None:
    fields = ["x-request-id", "Origin", "traceparent", "tracestate", "X-Forwarded-Host", "Access-Control-Request-Headers"]
    for field in fields:
        sent = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}: {evil}\r\n\r\n".encode()
        for answer in await server.raw(sent):
            assert answer.status in (400, 401)
            assert "x-evil" not in answer.headers
            assert re.fullmatch(r"req-[0-9a-f]{24}|a", answer.headers["x-request-id"])


@pytest.mark.parametrize("evil", EVIL)
async def test_no_name_in_a_body_or_a_path_becomes_one_either(server: Any, evil: str) -> None:
    answers = [
        await server.ask("POST", "/api/v1/tasks", headers=bearer(), json={"query": "hi", "session_id": evil}),
        await server.ask("POST", "/api/v1/tasks", headers=bearer(), json={"query": "hi", "task_id": evil, "model": evil}),
        await server.ask("POST", CHAT, headers=bearer(), json={"model": evil, "messages": []}),
        await server.ask("GET", "/api/v1/stream/sse", headers=bearer(), params={"workflow_id": evil}),
        await server.ask("GET", "/v1/models/" + evil.encode().hex("%").join(("%", "")), headers=bearer()),
    ]
    for answer in answers:
        assert answer.status < 500
        assert "x-evil" not in answer.headers


# Hop by hop


async def test_hop_by_hop_headers_do_not_cross_and_are_not_believed(server: Any, witness: Any) -> None:
    """A client cannot make the gateway lose its key on the way (`Connection: authorization`), nor speak for a proxy."""
    hops = {"Keep-Alive": "timeout=9999", "TE": "trailers", "Trailer": "Authorization", "Proxy-Connection": "keep-alive"}
    more = {"Connection": "authorization, x-request-id", "Proxy-Authorization": "Basic eDp5", "x-request-id": "mine"}
    answer = await server.ask("GET", "/v1/models", headers=bearer(**hops, **more))
    assert (answer.status, answer.headers["x-request-id"]) == (200, "mine")
    assert not {name.lower() for name in (*hops, *more)} & set(answer.headers) - {"x-request-id", "connection"}


async def test_the_internal_header_is_refused(server: Any) -> None:
    answer = await server.ask("GET", "/health", headers={"X-Headgate-Internal": "x.y"})
    assert (answer.status, answer.json["error"]["code"]) == (403, "internal_header")
