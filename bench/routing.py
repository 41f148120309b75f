"""What choosing between upstreams costs: for each piece of an answer nothing, for each call a few microseconds.

`python -m bench.routing` reads the answers of an upstream in the same process: by itself, through the router, and through the
router with a hedge configured that is never needed. CPU time, the best of several rounds: whatever else the machine does only
adds to it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager

import uvloop

from orchestrator.upstreams.route import Hedge, Route
from orchestrator.upstreams.routing import Router
from orchestrator.upstreams.upstream import Call, Delta, ModelCard, Piece

PIECES, CALLS, ROUNDS = 100_000, 1_000, 30

Pieces = AsyncIterator[Sequence[Piece]]
Way = Callable[[Call], AbstractAsyncContextManager[Pieces]]


class Instant:
    """An upstream that says `n` pieces as fast as they are taken."""

    continues = False

    def __init__(self, name: str) -> None:
        self.name = name

    async def stream(self, call: Call) -> AsyncGenerator[Sequence[Piece], None]:
        batch = [Delta(content="word")]
        for _ in range(call.body["n"]):
            yield batch

    async def models(self) -> Sequence[ModelCard]:
        return []

    async def close(self) -> None: ...


def routed(route: Route) -> Way:
    router = Router({"a": Instant("a"), "b": Instant("b")})

    @asynccontextmanager
    async def way(call: Call) -> AsyncIterator[Pieces]:
        async with router.ask(["a", "b"], call, route=route) as answer:
            yield aiter(answer)

    return way


def alone(call: Call) -> AbstractAsyncContextManager[Pieces]:
    return aclosing(Instant("a").stream(call))


async def cpu_s(way: Way, pieces: int, calls: int) -> float:
    call = Call("task-1", "m", {"n": pieces})
    began = time.process_time()
    for _ in range(calls):
        async with way(call) as answer:
            async for _ in answer:
                pass
    return time.process_time() - began


async def main() -> None:
    ways = {"alone": alone, "router": routed(Route()), "hedge": routed(Route(hedge=Hedge(after_s=60.0, max_share=1.0)))}
    piece_s, call_s = dict.fromkeys(ways, 1.0), dict.fromkeys(ways, 1.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            piece_s[name] = min(piece_s[name], await cpu_s(way, PIECES, 1) / PIECES)
            call_s[name] = min(call_s[name], await cpu_s(way, 1, CALLS) / CALLS)
    print(f"{'':8}{'ns/piece':>10}{'µs/call':>10}")
    for name in ways:
        print(f"{name:8}{piece_s[name] * 1e9:10.0f}{call_s[name] * 1e6:10.1f}")


if __name__ == "__main__":
    uvloop.run(main())
