"""What steps do in the world, where it takes more than a plan's own tests show."""

from __future__ import annotations

from orchestrator.engine import Submission
from orchestrator.stage import INLINE_CHARS
from tests.orchestrator.engines import ACME, an_engine, until


async def test_much_text_is_filled_in_as_little_is() -> None:
    """Templates over much text are filled in beside the loop."""
    much = "word " * (INLINE_CHARS // 5 + 1)
    plan = {
        "sequential": [
            {"agent": {"name": "much", "upstream": "demo", "input": f'/script\nsay "{much}"'}},
            {
                "conditional": {
                    "if": f"outputs.much|length > {INLINE_CHARS}",
                    "then": {
                        "agent": {
                            "name": "little",
                            "answers": True,
                            "upstream": "demo",
                            "input": '/script\nsay "{{ outputs.much.split()|length }} words"',
                        }
                    },
                }
            },
        ]
    }
    async with an_engine(models={"planned": {"plan": plan, "durability": "none"}}) as engine:
        run = await engine.submit(ACME, Submission("planned", {"messages": [{"role": "user", "content": "x"}]}))
        await until(engine, run.id, "STREAM_END")
        assert (await engine.details(ACME, run.id)).result == f"{INLINE_CHARS // 5 + 1} words"
