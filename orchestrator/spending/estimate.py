"""What a run will use, estimated before it begins, for limits and budgets that want to know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.catalog import Resolved
from orchestrator.limits.limits import Estimate
from orchestrator.spending.asking import first_step
from orchestrator.upstreams.tokens import Tokenizer


async def estimate(tokens: Tokenizer, body: Mapping[str, Any], resolved: Resolved) -> Estimate:
    """The request's prompt, with what is remembered of its session, and as much of its answer as is paid for before it begins.

    What agents add to the prompt, and what calls after the first one use, is asked for when they are made. Exact for models with
    a public vocabulary. A short prompt is counted here, in some fifty microseconds; a long one in a thread.
    """
    price = None if resolved.entry.price is None else resolved.entry.price.price()
    prompt = await tokens.count_messages(resolved.upstream_model, body)
    return Estimate(prompt, first_step(body), price)
