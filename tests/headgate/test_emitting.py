"""Users' own Temporal workflows behind a model's name: their outcome is the run's ending, and their activities speak in it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

import headgate
from gateway.app import new_session_id
from gateway.keyring import key_ring
from gateway.observe.metrics import GatewayMetrics
from gateway.rpc import grpc_door
from gateway.settings import Settings
from gateway.transports.drain import Drain
from orchestrator.embedded import Addresses
from orchestrator.engine import Engine, Submission
from orchestrator.events import Event
from orchestrator.runs import RunState
from orchestrator.workflows.worker import TemporalAddress
from tests.orchestrator.engines import ACME, an_engine, until

pytestmark = pytest.mark.local

KEY = "key-of-alice"


@activity.defn
async def speak(words: str) -> str:
    for word in words.split():
        headgate.say(word + " ")
    headgate.emit("PROGRESS", "spoken", payload={"progress": 1.0, "big": 2**60})
    await headgate.flush()
    return words


@activity.defn
def speak_in_a_thread(words: str) -> str:
    headgate.say(words)
    return words


@activity.defn
async def end_it_all(words: str) -> str:
    headgate.emit("WORKFLOW_COMPLETED", "I say so")
    try:
        await headgate.flush()
    except headgate.EmitRefused as refused:
        raise ApplicationError(str(refused), type=refused.code, non_retryable=True) from None
    return words


@activity.defn
async def fail_once(words: str) -> str:
    headgate.say(f"try {activity.info().attempt} ")
    await headgate.flush()
    if activity.info().attempt == 1:
        raise ApplicationError("once more")
    return words


@workflow.defn(name="Speaker")
class Speaker:
    """Does what the last word of its query says."""

    def __init__(self) -> None:
        self.decision: dict[str, Any] | None = None

    @workflow.signal
    def approve(self, decision: dict[str, Any]) -> None:
        self.decision = decision

    @workflow.run
    async def run(self, request: dict[str, Any]) -> Any:
        match request["query"].split()[-1]:
            case "fail":
                raise ApplicationError("no words today", type="NoWords", non_retryable=True)
            case "sleep":
                await workflow.sleep(3600)
            case "silent":
                return {"said": "nothing"}
            case "thread":
                return await self._do(speak_in_a_thread, "from a thread")
            case "end":
                return await self._do(end_it_all, "it could")
            case "again":
                return await self._do(fail_once, "there")
            case "wait":
                await workflow.wait_condition(lambda: self.decision is not None)
                return self.decision
        return await self._do(speak, request["query"])

    async def _do(self, what: Any, words: str) -> str:
        said: str = await workflow.execute_activity(what, words, start_to_close_timeout=timedelta(seconds=20))
        return said


@asynccontextmanager
async def a_users_worker(temporal: str, queue: str, gateway: str | None) -> AsyncIterator[None]:
    client = await Client.connect(temporal)
    interceptors = [] if gateway is None else [headgate.Emitting(gateway, api_key=KEY)]
    with ThreadPoolExecutor(2) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=[Speaker],
            activities=[speak, speak_in_a_thread, fail_once, end_it_all],
            activity_executor=threads,
            interceptors=interceptors,
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield


@asynccontextmanager
async def served(backends: Addresses, queue: str, **workflow_settings: Any) -> AsyncIterator[tuple[Engine, str]]:
    """An engine on real Temporal with a model `speaker`, and the address of its gRPC door."""
    theirs = {"workflow": {"name": "theirs", "type": "Speaker", "task_queue": queue}}
    last = {"agent": {"name": "last", "upstream": "demo", "answers": True, "input": '/script\nsay "{{ outputs.theirs }}"'}}
    models = {
        "speaker": {"workflow": {"type": "Speaker", "task_queue": queue, **workflow_settings}},
        "team": {"plan": {"sequential": [theirs, last]}},
        "relay": {"plan": {"sequential": [theirs]}},
    }
    settings = Settings.model_validate(
        {
            "auth": {"mode": "keys", "keys": [{"key": KEY, "name": "alice", "tenant": ACME.tenant}]},
            "grpc": {"port": 0},
            "upstreams": {"demo": {"kind": "scripted"}},
            "models": models,
        }
    )
    metrics, drain = GatewayMetrics(), Drain(spread=lambda seconds: 0.0)
    async with (
        an_engine(
            models=models, temporal=TemporalAddress(backends.temporal), task_queue=f"{queue}-own", temporal_wait_s=10.0
        ) as engine,
        key_ring(settings, engine, drain) as keys,
        grpc_door(settings, engine, keys, drain, metrics, new_session_id) as listening,
    ):
        assert listening is not None
        yield engine, f"127.0.0.1:{listening.port}"


@pytest.fixture
def queue() -> str:
    """Nobody else's."""
    return f"users-{secrets.token_hex(4)}"


def ask(query: str, model: str = "speaker") -> Submission:
    return Submission(model, {"messages": [{"role": "user", "content": query}]})


async def run_of(engine: Engine, query: str, model: str = "speaker") -> tuple[str, list[Event]]:
    async with asyncio.timeout(20):
        run = await engine.submit(ACME, ask(query, model))
        return run.id, await until(engine, run.id, "STREAM_END")


async def test_what_activities_say_is_in_the_run_and_the_result_ends_it(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, events = await run_of(engine, "one two three")
        details = await engine.details(ACME, run_id)
    assert [event.type for event in events] == [
        "WORKFLOW_STARTED",
        *["LLM_PARTIAL"] * 3,
        "PROGRESS",
        "LLM_OUTPUT",
        "WORKFLOW_COMPLETED",
        "STREAM_END",
    ]
    assert "".join(event.message or "" for event in events[1:4]) == "one two three "
    assert events[4].payload == {"progress": 1.0, "big": 2**60}
    assert (details.run.state, details.result) == (RunState.COMPLETED, "one two three")
    assert details.usage is not None
    assert details.usage.estimated


async def test_a_worker_that_never_emits_still_answers(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, _), a_users_worker(backends.temporal, queue, None):
        run_id, events = await run_of(engine, "silent")
        assert [event.type for event in events] == ["WORKFLOW_STARTED", "WORKFLOW_COMPLETED", "STREAM_END"]
        assert (await engine.details(ACME, run_id)).result == '{"said":"nothing"}'


async def test_its_failure_is_the_runs(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, _ = await run_of(engine, "fail")
        details = await engine.details(ACME, run_id)
    assert details.run.state is RunState.FAILED
    assert details.failure is not None
    assert (details.failure.code, details.failure.message) == ("NoWords", "no words today")


async def test_its_time_out_is_the_runs(backends: Addresses, queue: str) -> None:
    async with served(backends, queue, timeout_s=0.5) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, _ = await run_of(engine, "sleep")
        assert (await engine.get(ACME, run_id)).state is RunState.TIMEOUT


async def test_cancelling_the_run_cancels_the_workflow(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run = await engine.submit(ACME, ask("sleep"))
        await engine.cancel(ACME, run.id, "enough")
        async with asyncio.timeout(20):
            events = await until(engine, run.id, "STREAM_END")
        assert [event.type for event in events][-2:] == ["WORKFLOW_CANCELLED", "STREAM_END"]
        assert (events[-2].payload or {})["reason"] == "enough"
        client = await Client.connect(backends.temporal)
        async with asyncio.timeout(20):
            with pytest.raises(WorkflowFailureError):
                await client.get_workflow_handle(run.id).result()
        timeline = await engine.timeline(ACME, run.id)
        assert "WF_CANCELED" in [event.type for event in timeline]


async def test_activities_in_threads_and_retried_ones_speak_too(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        _, events = await run_of(engine, "thread")
        assert [event.message for event in events if event.type == "LLM_PARTIAL"] == ["from a thread"]
        _, events = await run_of(engine, "again")
        assert [event.message for event in events if event.type == "LLM_PARTIAL"] == ["try 1 ", "try 2 "]


async def test_a_workflow_without_a_run_works_as_before(backends: Addresses, queue: str) -> None:
    """Started by somebody else, not through Headgate: what it emits goes nowhere, and nothing fails."""
    async with served(backends, queue) as (_, door), a_users_worker(backends.temporal, queue, door):
        client = await Client.connect(backends.temporal)
        async with asyncio.timeout(20):
            result = await client.execute_workflow(
                "Speaker", {"query": "one two"}, id=f"own-{secrets.token_hex(4)}", task_queue=queue
            )
    assert result == "one two"


async def test_a_workflow_that_is_a_step_speaks_in_the_run_of_its_plan(backends: Addresses, queue: str) -> None:
    """Its id is the run's and the step's, and what it says is what an agent of the step's name says."""
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, events = await run_of(engine, "one two", "team")
        details = await engine.details(ACME, run_id)
        _, relayed = await run_of(engine, "one two three", "relay")
    said = [event for event in events if event.agent_id == "theirs"]
    assert [(event.type, event.message) for event in said] == [
        *[("LLM_PARTIAL", "one "), ("LLM_PARTIAL", "two ")],
        *[("PROGRESS", "spoken"), ("LLM_OUTPUT", "one two"), ("AGENT_COMPLETED", None)],
    ]
    assert details.result == "one two"
    assert (relayed[-2].payload or {})["result"] == "one two three"


async def test_a_step_cannot_end_its_run(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, _ = await run_of(engine, "end", "team")
        failure = (await engine.details(ACME, run_id)).failure
    assert failure is not None
    assert failure.code == "not_for_a_step"


async def test_the_failure_of_a_step_is_the_plans_and_a_cancel_reaches_it(backends: Addresses, queue: str) -> None:
    async with served(backends, queue) as (engine, door), a_users_worker(backends.temporal, queue, door):
        run_id, _ = await run_of(engine, "fail", "team")
        failure = (await engine.details(ACME, run_id)).failure
        run = await engine.submit(ACME, ask("sleep", "team"))
        client = await Client.connect(backends.temporal)
        async with asyncio.timeout(20):
            await until(engine, run.id, "PROGRESS")
            await engine.cancel(ACME, run.id, "enough")
            ending = (await until(engine, run.id, "STREAM_END"))[-2]
            with pytest.raises(WorkflowFailureError):
                await client.get_workflow_handle(f"{run.id}/theirs").result()
    assert failure is not None
    assert (failure.code, failure.message) == ("NoWords", "no words today")
    assert (ending.type, (ending.payload or {})["reason"]) == ("WORKFLOW_CANCELLED", "enough")


async def test_without_the_interceptor_emitting_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match=r"headgate\.Emitting"):
        headgate.say("hello")
