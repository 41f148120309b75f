"""P7: kill -9 of the serving process, with its own backends, is a pause for durable runs and an honest error for the others."""

from __future__ import annotations

import asyncio
import time

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, text_of
from tests.rough.conftest import Serve

HEARTBEAT_S = 5.0
PAUSE_S = HEARTBEAT_S + 2.0

WORDS = 30


def hanging_after(said: int, seed: int) -> str:
    """An answer that comes so far the first time, and whole when it is asked for again."""
    head = f"seed {seed}; say {said} words; once hang" if said else f"seed {seed}; once hang"
    return f"{head}; say {WORDS - said} words" if said < WORDS else head


async def test_every_run_goes_on_where_it_was(serve: Serve, upstream: ScriptedServer, asking: Client) -> None:
    """One kill meets runs before their first event, after it, in the middle, in full flow, before and after their ending."""
    server = await serve()
    cuts = [0, 1, WORDS // 2, WORDS]
    scripts = [hanging_after(said, seed) for seed, said in enumerate(cuts)]
    flowing = "seed 10; rate 20/s; say 100 words"
    whole = "seed 11; say 20 words"
    inline = "seed 12; say 5 words; hang"

    complete = asking.ask(server.url, "durable", whole)
    await complete.end()
    assert complete.done
    readings = [asking.ask(server.url, "durable", script) for script in [*scripts, flowing]]
    lost = asking.ask(server.url, "inline", inline)
    for reading, said in zip([*readings, lost], [*cuts, 20, 5], strict=True):
        await reading.said(said)
    killed = await server.restart()
    restarted = time.monotonic()
    for reading in [*readings, lost]:
        await reading.end()
        assert reading.ending == "broken"

    again = [asking.resume(server.url, reading.run_id) for reading in readings]
    rests = [asking.resume(server.url, reading.run_id, len(reading.chunks)) for reading in readings]
    refused = asking.resume(server.url, lost.run_id, len(lost.chunks))
    replayed = asking.resume(server.url, complete.run_id)
    await asyncio.gather(*(reading.end() for reading in [*again, *rests, refused, replayed]))

    for before, full, rest, script in zip(readings, again, rests, [*scripts, flowing], strict=True):
        assert full.done, full
        assert rest.done, rest
        assert full.text == text_of(script)
        assert full.chunks[: len(before.chunks)] == before.chunks
        assert before.chunks + rest.chunks == full.chunks
    assert replayed.chunks == complete.chunks
    assert (refused.error, refused.done) == ("worker_lost", False)
    print(f"\nrestarted after {restarted - killed:.1f} s, inline ended after {refused.ended - killed:.1f} s")
    print("pauses:", [f"{rest.times[0] - killed:.1f}" for rest in rests])
    asked = [call.started - killed for call in upstream.witness.calls if call.started > killed]
    print("asked again:", [f"{at:.1f}" for at in asked])
    assert len(asked) == len(readings)
    assert max(asked) <= PAUSE_S
    assert refused.ended - killed <= 15.0
    assert server.errors() == []
