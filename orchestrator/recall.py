"""What a session's earlier runs said, as context of the next: for models that say so, and only for them.

A client that brings a conversation of its own is taken at its word: nothing is put in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.catalog import MemoryConfig
from orchestrator.listing import Records
from orchestrator.runs import Principal, Run, RunFilter, RunState, last_said
from orchestrator.streamlog.log import Log
from orchestrator.upstreams.tokens import Tokenizer


class Recall:
    def __init__(self, log: Log, records: Records, tokens: Tokenizer) -> None:
        self._log = log
        self._records = records
        self._tokens = tokens

    async def body(
        self, principal: Principal, session_id: str, body: dict[str, Any], config: MemoryConfig, model: str
    ) -> dict[str, Any]:
        """The request with the earlier turns of its session between its instructions and its question. Raises Unavailable."""
        messages = body.get("messages", [])
        if any(message.get("role") not in ("system", "developer", "user") for message in messages):
            return body
        earlier = await self._turns(principal, session_id, config, model)
        first = next((place for place, message in enumerate(messages) if message.get("role") == "user"), len(messages))
        return {**body, "messages": [*messages[:first], *earlier, *messages[first:]]}

    async def _turns(self, principal: Principal, session_id: str, config: MemoryConfig, model: str) -> list[dict[str, Any]]:
        listing = await self._records.page(principal, RunFilter(session_id, RunState.COMPLETED), 0, config.max_turns)
        turns: list[dict[str, Any]] = []
        left = config.max_tokens
        for run in listing.runs:
            question, answer = await self._turn(principal, run)
            if not question or not answer:
                continue
            left -= await self._tokens.count(model, f"{question}\n{answer}")
            if left < 0:
                break
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}, *turns]
        return turns

    async def _turn(self, principal: Principal, run: Run) -> tuple[str, str]:
        """What was asked, whole while the log has it, and what was answered."""
        request = await self._log.request(run.id)
        asked: Mapping[str, Any] = {} if request is None else request.body
        details = await self._records.details(principal, run.id)
        return last_said(asked) or run.query or "", details.result or ""
