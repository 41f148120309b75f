"""What it costs to let a request in whose key is known: `python -m bench.admission`. No server, no sockets.

Prints microseconds per request for a configured key, a stored key, and a token, as JSON. Each figure is the best of several
rounds, because everything else that a machine does only adds to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import jwt
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.access.keys import ConfiguredKeys, Keys
from gateway.access.stored import StoredKeys
from gateway.access.tokens import Claims, SharedSecret, Tokens
from gateway.transports.drain import Drain
from orchestrator.keys import ApiKey, StoredKey, mint
from orchestrator.runs import Principal

ROUNDS, REQUESTS = 7, 20_000
SECRET = "0123456789abcdef0123456789abcdef"


class OneKey:
    """As much of an engine as a ring asks for, and how often it was asked."""

    def __init__(self, stored: StoredKey) -> None:
        self._stored = stored
        self.calls = 0

    async def find_keys(self, prefix: str) -> Sequence[StoredKey]:
        self.calls += 1
        return [self._stored]


async def measure() -> dict[str, Any]:
    text, kept = mint(os.urandom)
    engine: Any = OneKey(StoredKey(ApiKey(kept.id, kept.prefix, "bench", "acme", 1), kept.digest))
    stored = StoredKeys(engine, Drain(lambda _: 0.0), time.time, outage_s=3600)
    tokens = Tokens(Claims("i", "a", ["HS256"], "tenant", None, 0.0), SharedSecret(SECRET))
    configured = ConfiguredKeys([("sk-configured", Principal("acme", "alice"))])
    ring = Keys(configured, stored, tokens, time.time)
    said = {"iss": "i", "aud": "a", "sub": "alice", "tenant": "acme", "exp": int(time.time()) + 3600}
    shown = {"configured key": "sk-configured", "stored key": text, "token": jwt.encode(said, SECRET, "HS256")}
    cost = {name: await _cost_us(ring, key) for name, key in shown.items()}
    machine = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    return {"microseconds_per_request": cost, "calls_of_the_database": engine.calls, "requests": ROUNDS * REQUESTS, **machine}


async def _cost_us(ring: Keys, key: str) -> float:
    headers = CIMultiDictProxy(CIMultiDict({"Host": "x", "Accept": "*/*", "Authorization": f"Bearer {key}"}))
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(REQUESTS):
            await ring.principal(headers)
        best = min(best, time.perf_counter() - begun)
    return round(best / REQUESTS * 1e6, 2)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure()), indent=2))
