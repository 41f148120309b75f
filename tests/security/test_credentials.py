"""Keys that are none, over raw sockets: whatever is wrong with it, one 401, to the letter, and nothing of the request is read."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import grpc
import pytest

from protos.streaming_pb2 import StreamRequest
from tests.gateway.http.native import MISSING
from tests.security.world import World, a_world

KEYS = [
    {"key": "sk-a", "name": "alice", "tenant": "acme"},
    {"key": "sk-old", "name": "old", "tenant": "acme", "expires": "2020-01-01T00:00:00Z"},
]
_NONE_JWT = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=") + b"." + base64.urlsafe_b64encode(b'{"sub":"a"}') + b"."

WRONG = {
    "no key": b"",
    "an empty header": b"Authorization:\r\n",
    "an empty key": b"Authorization: Bearer\r\n",
    "spaces for a key": b"Authorization: Bearer    \r\n",
    "an empty X-API-Key": b"X-API-Key:\r\n",
    "a wrong key": b"Authorization: Bearer sk-x\r\n",
    "a key that expired": b"Authorization: Bearer sk-old\r\n",
    "the beginning of a key": b"Authorization: Bearer sk-\r\n",
    "a key and more": b"Authorization: Bearer sk-a x\r\n",
    "two keys in one": b"Authorization: Bearer sk-a,sk-a\r\n",
    "another case": b"Authorization: Bearer SK-A\r\n",
    "another scheme": b"Authorization: Basic c2stYTo=\r\n",
    "no scheme": b"Authorization: sk-a\r\n",
    "a scheme in quotes": b'Authorization: "Bearer" sk-a\r\n',
    "a key in quotes": b'Authorization: Bearer "sk-a"\r\n',
    "a tab": b"Authorization: Bearer\tsk-a\r\n",
    "twice the same": b"Authorization: Bearer sk-a\r\nAuthorization: Bearer sk-a\r\n",
    "two headers": b"Authorization: Bearer sk-a\r\nX-API-Key: sk-a\r\n",
    "two different ones": b"Authorization: Bearer sk-x\r\nAuthorization: Bearer sk-a\r\n",
    "the key as a cookie": b"Cookie: Authorization=Bearer sk-a; api_key=sk-a\r\n",
    "the key for a proxy": b"Proxy-Authorization: Bearer sk-a\r\n",
    "an underscore": b"X_API_Key: sk-a\r\n",
    "bytes that are no text": b"Authorization: Bearer \xff\xfe\xed\xa0\x80\r\n",
    "foreign digits and letters": "Authorization: Bearer ѕk-а\r\n".encode(),  # noqa: RUF001
    "a separator": "Authorization: Bearer sk-a\u2028\r\n".encode(),
    "a key of ours that is none": b"Authorization: Bearer sk-hg-" + b"A" * 43 + b"\r\n",
    "a token that says none": b"Authorization: Bearer " + _NONE_JWT + b"\r\n",
    "32 KB": b"Authorization: Bearer " + b"A" * 32_000 + b"\r\n",
}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world(auth={"mode": "keys", "keys": KEYS}) as world:
        yield world


def request(headers: bytes, path: bytes = b"/v1/models", method: bytes = b"GET") -> bytes:
    head = b"x-request-id: same\r\nConnection: close\r\n"
    return method + b" " + path + b" HTTP/1.1\r\nHost: x\r\n" + head + headers + b"\r\n"


@pytest.mark.parametrize("path", [b"/v1/models", b"/api/v1/tasks"])
async def test_every_wrong_key_is_the_same_401(world: World, path: bytes) -> None:
    answers = {name: (await world.server.raw(request(headers, path)))[0] for name, headers in WRONG.items()}
    one = answers["no key"]
    assert one.status == 401
    assert one.headers["www-authenticate"] == "Bearer"
    for name, answer in answers.items():
        assert (name, answer.status, answer.body) == (name, 401, one.body)
        assert {**answer.headers, "date": ""} == {**one.headers, "date": ""}, name


async def test_a_key_in_the_query_is_none(world: World) -> None:
    for name in (b"api_key", b"key", b"token", b"access_token", b"x-api-key", b"authorization"):
        (answer,) = await world.server.raw(request(b"", b"/v1/models?" + name + b"=sk-a"))
        assert answer.status == 401


@pytest.mark.parametrize("sent", [b"Authorization: Bearer a\0b\r\n", b"Authorization: Bearer a\rb\r\n", b"X-API-Key : sk-a\r\n"])
async def test_what_is_no_header_is_refused_before_anybody_looks_for_a_key(world: World, sent: bytes) -> None:
    (answer,) = await world.server.raw(request(sent))
    assert answer.status == 400


async def test_a_megabyte_of_a_key_is_not_read(world: World) -> None:
    (answer,) = await world.server.raw(request(b"Authorization: Bearer " + b"A" * (1 << 20) + b"\r\n"), first=True)
    assert answer.status == 431


async def test_nothing_of_a_body_is_read_without_a_key(world: World) -> None:
    """The refusal does not wait for a body that was announced and never sent."""
    head = b"Content-Type: application/json\r\nContent-Length: 30000000\r\n"
    (answer,) = await world.server.raw(request(head, b"/v1/chat/completions", b"POST"), first=True)
    assert answer.status == 401


WRONG_METADATA = {
    "none": (),
    "an empty one": (("authorization", ""),),
    "a wrong one": (("x-api-key", "sk-x"),),
    "one that expired": (("x-api-key", "sk-old"),),
    "two": (("x-api-key", "sk-a"), ("authorization", "Bearer sk-a")),
    "twice the same": (("x-api-key", "sk-a"), ("x-api-key", "sk-a")),
    "another scheme": (("authorization", "Basic sk-a"),),
    "bytes": (("x-api-key-bin", b"sk-a"),),
}


async def test_grpc_refuses_them_all_alike(world: World) -> None:
    said = set()
    for metadata in WRONG_METADATA.values():
        call = world.streams.StreamTaskExecution(StreamRequest(workflow_id=MISSING), metadata=metadata, timeout=10)
        said.add((await call.code(), await call.details(), tuple(await call.trailing_metadata())))
    assert len(said) == 1
    assert said.pop()[0] is grpc.StatusCode.UNAUTHENTICATED
