"""Tokens as OpenAI clients read them."""

from __future__ import annotations

from typing import Any

from orchestrator.upstreams.upstream import Usage


def usage_object(usage: Usage) -> dict[str, Any]:
    """The `usage` object, with details where they are known.

    `estimated` is ours: present, and true, when an upstream did not count. SDKs keep or ignore keys that they do not know.
    """
    out: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached is not None:
        out["prompt_tokens_details"] = {"cached_tokens": usage.cached}
    if usage.reasoning is not None:
        out["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning}
    if usage.estimated:
        out["estimated"] = True
    return out
