"""What an agent's calls cost while they are made, where a budget concerns it. Without one all of this is nothing."""

from __future__ import annotations

from orchestrator.agents.job import Job
from orchestrator.agents.voice import Voice
from orchestrator.errors import Failure
from orchestrator.events import EventType
from orchestrator.spending.asking import limited, most_asked
from orchestrator.spending.meter import Meter
from orchestrator.upstreams.tokens import Tokenizer, same_prompt
from orchestrator.upstreams.upstream import Call, Usage


class Expenses:
    """`meter` is asked once for each read of an upstream."""

    def __init__(self, job: Job, meter: Meter | None, tokens: Tokenizer, voice: Voice) -> None:
        self.meter = meter
        self._job = job
        self._tokens = tokens
        self._voice = voice

    @property
    def exceeded(self) -> Failure | None:
        """Why the answer is no longer than it is, if a budget is why."""
        return None if self.meter is None or self.meter.wall is None else self.meter.wall.exceeded

    async def begin(self, call: Call) -> Call:
        """The call, with its prompt and the beginning of its answer paid for, and told how long that may be."""
        if self.meter is None:
            return call
        prompt = self._counted(call) or await self._tokens.count_messages(call.model, call.body)
        if call.prefix:
            prompt += await self._tokens.count(call.model, call.prefix)
        most = await self.meter.begin(prompt, most_asked(call.body))
        return call if most is None else limited(call, most)

    def _counted(self, call: Call) -> int:
        """The prompt's tokens, where they were counted when the run was let in. 0: they were not."""
        hold, request = self._job.run.hold, self._job.request
        if hold is None or not same_prompt(call.model, call.body, request.upstream_model, request.body):
            return 0
        return hold.prompt_tokens

    async def twice(self) -> bool:
        """Whether the call may be made twice at once: its prompt is paid twice from now on, until `once` or `end`."""
        return self.meter is None or await self.meter.twice()

    def once(self) -> None:
        """Only one of the two was made, or has to be paid."""
        if self.meter is not None:
            self.meter.once()

    async def end(self, usage: Usage) -> None:
        """What the call has used in truth."""
        if self.meter is not None:
            await self.meter.end(usage)

    async def leave(self) -> None:
        """Another attempt goes on: what was paid for this one's call and not said is for that one."""
        if self.meter is not None:
            self.meter.close()
            await self.meter.end(self.meter.usage)

    def close(self) -> None:
        """The attempt is over. One that was given up may have left a call open, and what it was about to pay for."""
        if self.meter is not None:
            self.meter.close()

    def tell(self) -> None:
        """Say how the budget stands that is spent, if one is."""
        wall = None if self.meter is None else self.meter.wall
        if wall is None:
            return
        if (standing := wall.standing()) is not None:
            self._voice.say(EventType.BUDGET_THRESHOLD, message=wall.exceeded.message, payload=standing)
        else:
            self._voice.say(EventType.WARNING, message=wall.exceeded.message, payload={"code": wall.exceeded.code})
