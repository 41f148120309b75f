"""Agents with tools as steps of plans: what later steps and the run's ending know of them."""

from __future__ import annotations

from typing import Any

from orchestrator.engine import Submission
from orchestrator.tools.config import PythonTool
from tests.orchestrator.engines import ACME, an_engine, until

TOOLS = {"weather": PythonTool(python="compat_tests.toolbox:weather")}
LOOK = '/script\nsay "Let me look. "; call weather {"city": "Paris"}; then; say "It is "; say results'


def agent(name: str, script: str, **more: Any) -> dict[str, Any]:
    return {"agent": {"name": name, "upstream": "demo", "input": script, **more}}


def model(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"plan": {"sequential": {"steps": list(steps)}}, "durability": "none"}


async def test_the_output_of_a_step_is_the_text_of_all_its_turns() -> None:
    writer = agent("writer", "/script\nsay {{ outputs.looker | tojson }}", answers=True)
    models = {"team": model(agent("looker", LOOK, tools=["weather"]), writer)}
    async with an_engine(models=models, tools=TOOLS) as engine:
        run = await engine.submit(ACME, Submission("team", {"messages": [{"role": "user", "content": "Well?"}]}))
        events = await until(engine, run.id, "STREAM_END")
    (ending,) = (event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED")
    assert ending["result"] == "Let me look. It is sunny in Paris"


async def test_the_result_of_a_run_is_what_its_readers_got() -> None:
    """The answering agent is not the last step, so that it is not itself that ends the run."""
    after = agent("after", '/script\nsay "done"')
    models = {"team": model(agent("looker", LOOK, tools=["weather"], answers=True), after)}
    async with an_engine(models=models, tools=TOOLS) as engine:
        run = await engine.submit(ACME, Submission("team", {"messages": [{"role": "user", "content": "Well?"}]}))
        events = await until(engine, run.id, "STREAM_END")
    said = "".join(event.message or "" for event in events if event.type == "LLM_PARTIAL" and event.agent_id == "looker")
    (ending,) = (event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED")
    assert ending["result"] == said == "Let me look. It is sunny in Paris"
    assert ending["finish_reason"] == "stop"


async def test_a_step_that_is_tried_again_begins_its_turns_anew() -> None:
    """What the first try said before its tools is not part of what the second one says."""
    failing = agent(
        "looker", '/script\nsay "One. "; call weather {"city": "Rome"}; then; twice cut; say "Two."', tools=["weather"]
    )
    retry = {"retry": {"step": failing, "max_retries": 1, "delay_s": 0}}
    writer = agent("writer", "/script\nsay {{ outputs.looker | tojson }}", answers=True)
    async with an_engine(models={"team": model(retry, writer)}, tools=TOOLS) as engine:
        run = await engine.submit(ACME, Submission("team", {"messages": [{"role": "user", "content": "Well?"}]}))
        events = await until(engine, run.id, "STREAM_END")
    types = [event.type for event in events]
    assert types.count("AGENT_FAILED") == 1
    (ending,) = (event.payload or {} for event in events if event.type == "WORKFLOW_COMPLETED")
    assert ending["result"] == "One. Two."
