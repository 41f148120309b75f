"""Limits as clients meet them at each door: headers, refusals, places. The engine is a real one over Redis, here or apart."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from aiohttp import WSServerHandshakeError
from grpc import aio
from openai import AsyncOpenAI, RateLimitError

from gateway.app import new_session_id
from gateway.keyring import key_ring
from gateway.rpc import grpc_door
from gateway.settings import Settings
from orchestrator.embedded import Addresses
from orchestrator.limits.redis import RedisLimits
from orchestrator.streamlog.redis import RedisLog
from protos.orchestrator_pb2 import SubmitTaskRequest
from protos.orchestrator_pb2_grpc import OrchestratorServiceStub
from protos.streaming_pb2 import StreamRequest
from protos.streaming_pb2_grpc import StreamingServiceStub
from tests.gateway.http.conftest import Server, serving
from tests.gateway.http.native import TASKS
from tests.gateway.http.streams import SSE, WS
from tests.gateway.http.test_chat_route import CHAT, ask, bearer, text
from tests.orchestrator.apart import SHAPES
from tests.orchestrator.engines import MODELS, an_engine

pytestmark = pytest.mark.local

KEYS = [
    {"key": "sk-a", "name": "alice", "tenant": "acme"},
    {"key": "sk-b", "name": "bob", "tenant": "acme"},
    {"key": "sk-own", "name": "own", "tenant": "acme", "limits": {"requests_per_minute": 100}},
]
_prefixes = itertools.count(1)


@dataclass
class Place:
    """A server whose limits are real."""

    server: Server
    channel: aio.Channel

    async def chat(self, script: str = 'say "Hello"', key: str = "sk-a", **fields: Any) -> Any:
        return await self.server.ask("POST", CHAT, headers=bearer(key), json=ask(script, model="demo", **fields))

    async def task(self, script: str = 'say "Hello"', key: str = "sk-a") -> Any:
        return await self.server.ask("POST", TASKS, headers=bearer(key), json={"query": f"/script\n{script}"})

    @property
    def openai(self) -> AsyncOpenAI:
        return AsyncOpenAI(api_key="sk-a", base_url=f"{self.server.url}/v1")


Limited = Callable[..., Awaitable[Place]]


@pytest.fixture(params=SHAPES)
async def limited(request: pytest.FixtureRequest, backends: Addresses) -> AsyncIterator[Limited]:
    """`await limited(key={…}, tenant={…})`: what `limits` of the configuration says."""
    async with AsyncExitStack() as stack:

        async def start(redis: str = backends.redis, **limits: Any) -> Place:
            auth = {"mode": "keys", "keys": KEYS}
            settings = Settings.model_validate(
                {"auth": auth, "models": MODELS, "upstreams": UPSTREAMS, "limits": limits, "grpc": {"port": 0}}
            )
            prefix = f"doors{next(_prefixes)}"
            log = await stack.enter_async_context(RedisLog(redis, prefix=prefix))
            counts = await stack.enter_async_context(RedisLimits(log.connection, settings.limits.policy(), prefix=prefix))
            engine = await stack.enter_async_context(an_engine(log=log, limits=counts, models=MODELS))
            reached = await stack.enter_async_context(SHAPES[request.param](engine))
            server = await stack.enter_async_context(serving(settings, reached))
            keys = await stack.enter_async_context(key_ring(settings, reached, server.drain))
            door = grpc_door(settings, reached, keys, server.drain, server.metrics, new_session_id)
            listening = await stack.enter_async_context(door)
            assert listening is not None
            channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{listening.port}"))
            return Place(server, channel)

        yield start


UPSTREAMS = {"demo": {"kind": "scripted"}}


def rates(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("x-ratelimit-")}


async def test_answers_say_how_the_limits_stand(limited: Limited) -> None:
    place = await limited(key={"requests_per_minute": 3})
    streamed = await place.chat()
    assert (streamed.status, text(streamed.body)) == (200, "Hello")
    assert rates(streamed.headers) == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "20s",
    }
    whole = await place.chat(stream=False)
    task = await place.task()
    assert [rates(answer.headers)["x-ratelimit-remaining-requests"] for answer in (whole, task)] == ["1", "0"]
    read = await place.server.ask("GET", f"{TASKS}/{task.json['task_id']}", headers=bearer())
    assert (read.status, rates(read.headers)) == (200, {})

    refused = await place.chat()
    assert refused.status == 429
    assert 18_000 < int(refused.headers["retry-after-ms"]) <= 20_000
    assert (refused.headers["retry-after"], "x-should-retry" in refused.headers) in (("20", False), ("19", False))
    assert rates(refused.headers)["x-ratelimit-remaining-requests"] == "0"
    error = refused.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    assert error["message"].startswith("Rate limit reached for the requests per minute (RPM) of this key: limit 3.")
    refused = await place.task()
    assert (refused.status, refused.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert rates(refused.headers)["x-ratelimit-remaining-requests"] == "0"


async def test_who_is_not_limited_is_told_nothing(limited: Limited) -> None:
    place = await limited(tenants={"evil": {"requests_per_minute": 1}})
    assert rates((await place.chat()).headers) == {}


async def test_a_key_may_have_limits_of_its_own(limited: Limited) -> None:
    place = await limited(key={"requests_per_minute": 1})
    answers = [await place.chat(key=key) for key in ("sk-a", "sk-own", "sk-own", "sk-a", "sk-b")]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 200]


async def test_openais_sdk_reads_the_headers_and_raises_what_it_should(limited: Limited) -> None:
    place = await limited(key={"requests_per_minute": 1})
    async with place.openai as client:
        question: Any = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
        raw = await client.chat.completions.with_raw_response.create(**question)
        assert raw.headers["x-ratelimit-remaining-requests"] == "0"
        assert raw.headers["x-ratelimit-reset-requests"] == "1m0s"
        with pytest.raises(RateLimitError) as refused:
            await client.with_options(max_retries=0).chat.completions.create(**question)
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "requests")


async def test_tokens_are_reserved_and_corrected(limited: Limited) -> None:
    """The prompt, and as much of an answer as is reserved at first; when the run has ended, what it has used."""
    place = await limited(key={"tokens_per_minute": 100_000})
    answer = await place.chat(max_tokens=500)
    first = rates(answer.headers)
    assert (first["x-ratelimit-limit-tokens"], "x-ratelimit-limit-requests" in first) == ("100000", False)
    left = int(first["x-ratelimit-remaining-tokens"])
    assert 99_000 < left < 99_500
    for _ in range(20):  # what the last of them have used may not be known yet
        answer = await place.chat(max_tokens=500)
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) > 97_000


async def test_a_spent_budget_is_not_worth_a_retry(limited: Limited) -> None:
    """Official SDKs retry a 429 by themselves unless they are told not to."""
    place = await limited(key={"budgets": {"day": {"tokens": 40}}})
    answers = [await place.chat("say 8 words", max_tokens=10)]
    while answers[-1].status == 200:
        answers.append(await place.chat("say 8 words", max_tokens=10))
    refused = answers[-1]
    assert 1 < len(answers) < 5
    assert (refused.status, refused.headers["x-should-retry"], "retry-after" in refused.headers) == (429, "false", False)
    error = refused.json["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    async with place.openai as client:
        with pytest.raises(RateLimitError) as raised:
            await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello " * 40}])
    assert raised.value.code == "insufficient_quota"
    assert raised.value.request.headers["x-stainless-retry-count"] == "0"


async def test_the_next_run_is_let_in_by_who_has_read_the_end(limited: Limited) -> None:
    place = await limited(key={"runs": 1})
    for _ in range(25):
        answer = await place.chat()
        assert (answer.status, text(answer.body)) == (200, "Hello")


async def test_so_many_runs_at_a_time(limited: Limited) -> None:
    place = await limited(key={"runs": 1})
    first = await place.task('say "Hello"; hang')
    second = await place.task()
    assert (second.status, second.headers["retry-after"], second.json["error"]["code"]) == (429, "1", "rate_limit_exceeded")
    await place.server.ask("POST", f"{TASKS}/{first.json['task_id']}/cancel", headers=bearer())
    await place.server.ask("GET", f"{SSE}?workflow_id={first.json['task_id']}", headers=bearer())
    assert (await place.task()).status == 200


async def test_repetitions_are_free(limited: Limited) -> None:
    """Thirty callers with one key, of whom many try to begin the run before it is there: one request, one run."""
    place = await limited(key={"requests_per_minute": 2, "runs": 1})
    headers = bearer(**{"Idempotency-Key": "k-1"})
    body = ask("rate 200/s; say 20 words", model="demo")
    answers = await asyncio.gather(*(place.server.ask("POST", CHAT, headers=headers, json=body) for _ in range(30)))
    assert {answer.status for answer in answers} == {200}
    assert [(await place.chat()).status for _ in range(2)] == [200, 429]


class TestStreams:
    async def test_at_each_door(self, limited: Limited) -> None:
        place = await limited(key={"streams": 1})
        run_id = (await place.task('say "Hello"; hang')).json["task_id"]
        streams = StreamingServiceStub(place.channel)  # type: ignore[no-untyped-call]
        url = f"{place.server.url}{SSE}?workflow_id={run_id}"
        async with place.server.http.get(url, headers=bearer()) as reading:
            await reading.content.readuntil(b"\n\n")
            sse = await place.server.ask("GET", f"{SSE}?workflow_id={run_id}", headers=bearer())
            assert (sse.status, sse.json["error"]["code"], sse.headers["retry-after"]) == (429, "too_many_streams", "1")
            chat = await place.server.ask("GET", f"{CHAT}/{run_id}?stream=true", headers=bearer())
            assert (chat.status, chat.json["error"]["code"]) == (429, "too_many_streams")
            with pytest.raises(WSServerHandshakeError) as handshake:
                await place.server.http.ws_connect(f"{place.server.url}{WS}?workflow_id={run_id}", headers=bearer())
            assert handshake.value.status == 429
            call = streams.StreamTaskExecution(StreamRequest(workflow_id=run_id), metadata=(("x-api-key", "sk-a"),), timeout=10)
            with pytest.raises(aio.AioRpcError) as refused:
                await call.read()
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            other = await place.chat()  # the answer to a request that begins a run is that run's
            assert (other.status, text(other.body)) == (200, "Hello")
        async with place.server.http.get(url, headers=bearer()) as reading:  # the place was given back
            assert (await reading.content.readuntil(b"\n\n")) != b""

    async def test_one_more_on_a_socket(self, limited: Limited) -> None:
        place = await limited(key={"streams": 1})
        one, other = [(await place.task('say "Hello"; hang')).json["task_id"] for _ in range(2)]
        async with place.server.http.ws_connect(f"{place.server.url}{WS}?workflow_id={one}", headers=bearer()) as socket:
            await socket.send_json({"op": "subscribe", "workflow_id": other})
            async with asyncio.timeout(10):
                while True:
                    said = await socket.receive_json()
                    if said.get("op") == "subscribe":
                        break
        assert said["error"]["code"] == "too_many_streams"


async def test_grpc(limited: Limited) -> None:
    place = await limited(key={"requests_per_minute": 1})
    tasks = OrchestratorServiceStub(place.channel)  # type: ignore[no-untyped-call]
    request = SubmitTaskRequest(query='/script\nsay "Hello"')
    call = tasks.SubmitTask(request, metadata=(("x-api-key", "sk-a"),), timeout=10)
    await call
    assert rates(dict(await call.trailing_metadata())) == {
        "x-ratelimit-limit-requests": "1",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    with pytest.raises(aio.AioRpcError) as refused:
        await tasks.SubmitTask(request, metadata=(("x-api-key", "sk-a"),), timeout=10)
    trailers: Any = dict(refused.value.trailing_metadata())
    assert (refused.value.code(), trailers["x-error-code"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limit_exceeded")
    assert trailers["x-ratelimit-remaining-requests"] == "0"
    assert 58_000 < int(trailers["grpc-retry-pushback-ms"]) <= 60_000
