"""A Temporal workflow that you already have, behind an OpenAI endpoint.

1. In config.yaml, give it a model's name (and restart Headgate):

       models:
         haiku: {workflow: {type: Haiku, task_queue: poets}}

2. Run this worker, with the Temporal that Headgate uses (its address is in the start-up lines) and Headgate's gRPC address:

       .venv/bin/python examples/existing_workflow.py 127.0.0.1:7233 127.0.0.1:50052

3. Ask any OpenAI client for the model `haiku`, streaming or not. Cancel, resume and watch it as any other run.

What makes it stream are the three lines marked with `headgate`; without them, the workflow's result is the answer.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

with workflow.unsafe.imports_passed_through():
    import headgate  # 1 headgate


@activity.defn
async def write(topic: str) -> str:
    """Stands for your model call, tool use, retrieval …"""
    words = f"{topic} at dawn, a gate opens without sound, the stream finds its way".split()
    for word in words:
        headgate.say(word + " ")  # 2 headgate
        await asyncio.sleep(0.1)
    return " ".join(words)


@workflow.defn(name="Haiku")
class Haiku:
    @workflow.run
    async def run(self, request: dict[str, Any]) -> str:
        return await workflow.execute_activity(write, request["query"], start_to_close_timeout=timedelta(minutes=5))


async def main(temporal: str, gateway: str) -> None:
    client = await Client.connect(temporal)
    emitting = headgate.Emitting(gateway)  # 3 headgate
    async with Worker(client, task_queue="poets", workflows=[Haiku], activities=[write], interceptors=[emitting]):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
