"""P7 at event 0: a kill while runs are being started: a log is open, a workflow started, a first decision taken, or none."""

from __future__ import annotations

import asyncio

from orchestrator.upstreams.scripted_server import ScriptedServer
from tests.rough.client import Client, text_of
from tests.rough.conftest import Serve
from tests.rough.process import Backends

RUNS = {"heartbeat_s": 2.0, "janitor_s": 1.0}
BOUND_S = 15.0


async def test_no_run_is_forgotten(serve: Serve, backends: Backends, upstream: ScriptedServer, asking: Client) -> None:
    dying, living = await asyncio.gather(serve(backends, runs=RUNS), serve(backends, runs=RUNS))
    before = await asking.runs(living.url)
    scripts = {seed: f"seed {seed}; say 3 words" for seed in range(40)}
    readings = [asking.ask(dying.url, "durable", script) for script in scripts.values()]
    await upstream.witness.nth(3)
    killed = await dying.kill9()
    await asyncio.gather(*(reading.end() for reading in readings))

    begun = {run_id: state for run_id, state in (await asking.runs(living.url)).items() if run_id not in before}
    unfinished = [run_id for run_id, state in begun.items() if state in ("QUEUED", "RUNNING")]
    assert unfinished, "the kill came too late to prove anything"
    resumed = [asking.resume(living.url, run_id) for run_id in begun]
    await asyncio.gather(*(reading.end() for reading in resumed))
    slowest = max(reading.ended for reading in resumed) - killed
    print(f"\n{len(begun)} of {len(scripts)} runs begun, {len(unfinished)} unfinished; the last one ended after {slowest:.1f} s")
    texts = {text_of(script) for script in scripts.values()}
    for reading in resumed:
        assert reading.done, reading
        assert reading.text in texts
    assert slowest <= BOUND_S
    asked = [call.key for call in upstream.witness.calls]
    assert max(asked.count(script) for script in asked) <= 2
    assert living.errors() == []
