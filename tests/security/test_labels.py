"""Nothing that a client chooses becomes a metric's label: each would be a time series for ever, here and in Prometheus."""

from __future__ import annotations

import secrets
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from protos.streaming_pb2 import StreamRequest
from tests.gateway.http.native import bearer
from tests.security.world import CHAT, KEY, World, a_world

TIMES = 30
CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}


async def test_a_client_makes_no_new_series() -> None:
    async with a_world() as world:
        await everything(world, "a")
        await series(world)  # a request of its own kind
        before = await series(world)
        for _ in range(TIMES):
            await everything(world, secrets.token_hex(8))
        assert await series(world) - before == set()
        assert len(before) > 100


async def series(world: World) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    text = (await world.server.ask("GET", "/metrics", headers=bearer())).body.decode()
    families = text_string_to_metric_families(text)
    return {(sample.name, tuple(sorted(sample.labels.items()))) for family in families for sample in family.samples}


async def everything(world: World, word: str) -> None:
    """A request of each kind, with `word` wherever a client may put one."""
    world.upstream.says({**CHUNK, "model": word, "id": word})
    named = bearer(**{"User-Agent": word, "x-request-id": word, "Origin": f"https://{word}.example", "X-Session-ID": word})
    body: dict[str, Any] = {"messages": [{"role": "user", "content": word}], "user": word, "metadata": {word: word}}
    server, method = world.server, "".join(letter for letter in word.upper() if letter.isalpha())
    await server.ask("POST", CHAT, headers=named, json={"model": f"any/{word}", **body})
    await server.ask("POST", CHAT, headers=named, json={"model": word, **body})
    await server.ask(
        "POST", "/api/v1/tasks", headers={**named, "Idempotency-Key": word}, json={"query": word, "model": f"any/{word}"}
    )
    world.upstream.says({"error": {"message": word, "code": word, "type": word}})
    await server.ask("POST", CHAT, headers=named, json={"model": f"any/{word}", **body})
    for path in (
        f"/{word}",
        f"/v1/models/{word}",
        f"/api/v1/tasks/{word}",
        f"/api/v1/sessions/{word}",
        f"/api/v1/tasks?{word}={word}",
    ):
        await server.ask("GET", path, headers=named)
    await server.ask(method, f"/{word}", headers=named)
    await server.ask(method, "/v1/models", headers=named)
    await server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {word}"})
    await server.ask("GET", f"/api/v1/stream/sse?workflow_id={word}&types=X_{word.upper()}", headers=named)
    call = world.streams.StreamTaskExecution(StreamRequest(workflow_id=word), metadata=(*KEY, ("user-agent", word), (word, word)))
    await call.code()
    unknown = world.channel.unary_unary(f"/{word}.Service/{word}")(b"", metadata=KEY)
    await unknown.code()
