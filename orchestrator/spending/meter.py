"""Counts what one agent says while it says it, and stops it when there is nothing left to pay for more.

Counting costs an addition for each piece: no tokenizer and no Redis. More is asked for in steps, well before it is needed, so
that only an answer that is faster than Redis ever waits, and then at the wall alone. What an upstream reports in the end takes
the place of what was counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from orchestrator.errors import HeadgateError, Unavailable
from orchestrator.spending.purses import Begun, Purse
from orchestrator.upstreams.upstream import Delta, Finish, Piece, Usage

_log = logging.getLogger(__name__)

STEP = 512
"""How much of an answer is paid ahead at a time, where a budget has plenty."""

GRACE_S = 0.1
"""How long an upstream that has said as much as may be paid for is given to say that this was all."""

_PATIENCE_S = 0.25
_LONGEST_TOKEN = 12
"""Characters of ASCII. A longer delta is taken to be several tokens of four."""

_Answer = TypeVar("_Answer")


def tokens(delta: Delta) -> int:
    """How many tokens a delta is, near enough. Most upstreams send one at a time; of other scripts a token is a letter or two."""
    text = delta.content or delta.reasoning or delta.refusal
    if not text:
        return _of_calls(delta)
    size = len(text)
    if text.isascii():
        return 1 if size <= _LONGEST_TOKEN else (size + 3) // 4
    return (size + 1) // 2


class Meter:
    """Of one attempt of an agent, which makes one call after another.

    `on_wall` is called, once, when the answer has to stop; it cancels the task that is metered. `wall` is the empty purse then.
    """

    def __init__(self, purses: Sequence[Purse], on_wall: Callable[[], None], step: int = STEP) -> None:
        self._purses = purses
        self._on_wall = on_wall
        self._step = step
        self._ahead = step // 2
        self._prompt = 0
        self._second = 0
        """What is held for the prompt of a second upstream."""
        self._said = 0
        self._told = 0
        self._granted: list[int] = []
        self._covered = 0
        self._dry: Purse | None = None
        self._extending: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._clamp: Purse | None = None
        self.wall: Purse | None = None

    async def begin(self, prompt: int, asked: int | None) -> int | None:
        """Before a call. How many tokens its answer may have at most, if that is fewer than were `asked` for.

        Where there is nothing left for it, this is the wall.
        """
        self._prompt, self._second, self._said, self._told = prompt, 0, 0, 0
        self._dry = self._clamp = None
        wanted = self._step if asked is None else min(self._step, asked)
        begun: list[Begun] = []
        for purse in self._purses:
            given = await _patiently(partial(purse.begin, prompt, wanted))
            if given is None:
                await self._give_back(begun, prompt)
                self._hit(purse)
                await asyncio.sleep(0)  # here the cancellation arrives
                return 0
            begun.append(given)
        self._granted = [given.granted for given in begun]
        self._covered = min(self._granted)
        most = [(given.most, number) for number, given in enumerate(begun) if given.most is not None]
        least, number = min(most, default=(None, 0))
        if least is None or (asked is not None and asked <= least):
            return None
        self._clamp = self._purses[number]
        return least

    async def twice(self) -> bool:
        """Hold the prompt once more, for a second upstream that may be asked as well. False where there is not enough."""
        begun: list[Begun] = []
        for purse in self._purses:
            try:
                given = await purse.begin(0, self._prompt)
            except Unavailable:
                given = None
            if given is not None:
                begun.append(given)
            if given is None or given.granted < self._prompt:
                await self._give_back(begun, 0)
                return False
        self._second = self._prompt
        return True

    def once(self) -> None:
        """No second upstream has to be paid: what was held for it is the answer's."""
        self._granted = [granted + self._second for granted in self._granted]
        self._covered, self._second = self._covered + self._second, 0

    def covers(self, pieces: Sequence[Piece]) -> bool:
        """Count what was said. False if it is more than was paid for: then nothing is counted, and `afford` has to be asked."""
        said = self._said
        for piece in pieces:
            if type(piece) is Delta:
                said += tokens(piece)
        if said > self._covered:
            return False
        self._said = said
        if said + self._ahead >= self._covered:
            self._near()
        return True

    async def afford(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """Those of the pieces that can be paid for, which are all of them unless this is the wall. Waits for the purses."""
        while not self.covers(pieces):
            if self._dry is not None:
                self._hit(self._dry)
                return self._paid(pieces)
            await asyncio.shield(self._extend(sum(tokens(piece) for piece in pieces if type(piece) is Delta)))
        return pieces

    def stopped(self, reasons: Sequence[str | None]) -> None:
        """The upstream ended the answer by itself, for these reasons. Where it was told how long it may be, that was the wall."""
        if self._clamp is not None and "length" in reasons:
            self.wall = self._clamp

    @property
    def usage(self) -> Usage:
        """What the call has used as far as it was counted."""
        return Usage(self._prompt, self._said, self._prompt + self._said, estimated=True)

    async def end(self, usage: Usage) -> None:
        """After a call: what it used in truth. What was paid and not used can be had by others."""
        if not self._granted:
            return
        await self._settled()
        paid, self._granted = self._granted, []
        for purse, granted in zip(self._purses, paid, strict=True):
            used = usage.prompt_tokens + usage.completion_tokens
            unused = self._prompt + self._second + granted - used
            try:
                await purse.end(used - self._prompt - self._told, unused, granted - usage.completion_tokens)
            except HeadgateError as error:
                _log.warning("what a call did not use is not given back: %s", error)

    def close(self) -> None:
        """Nobody says anything any more, whether the last call was ended or not."""
        self._no_grace()
        if self._extending is not None:
            self._extending.cancel()

    def _no_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    async def _settled(self) -> None:
        self._no_grace()
        if self._extending is not None:
            await asyncio.wait([self._extending])

    # -- paying ahead ----------------------------------------------------------------------------------------------------

    def _near(self) -> None:
        """Little is left of what was paid for."""
        if self._dry is None:
            self._extend()
        elif self._said >= self._covered and self._grace is None:
            self._grace = asyncio.get_running_loop().call_later(GRACE_S, self._hit, self._dry)

    def _extend(self, needed: int = 0) -> asyncio.Task[None]:
        if self._extending is None:
            self._extending = asyncio.get_running_loop().create_task(self._pay(needed))
        return self._extending

    async def _pay(self, needed: int) -> None:
        try:
            used, self._told = self._said - self._told, self._said
            enough = self._said + max(needed, self._ahead) + self._step
            for number, purse in enumerate(self._purses):
                wanted = enough - self._granted[number]
                granted = await _patiently(partial(purse.more, used, max(wanted, 0)))
                self._granted[number] += granted
                if not granted and wanted > 0:
                    self._dry = purse
            self._covered = min(self._granted)
        finally:
            self._extending = None
        if self._dry is not None and self._said >= self._covered:
            self._near()

    async def _give_back(self, begun: Sequence[Begun], prompt: int) -> None:
        for purse, given in zip(self._purses, begun, strict=False):
            await purse.end(-prompt, prompt + given.granted, given.granted)

    def _hit(self, purse: Purse) -> None:
        if self.wall is None:
            self.wall = purse
            self._on_wall()

    def _paid(self, pieces: Sequence[Piece]) -> Sequence[Piece]:
        """The first ones, and what is no text."""
        paid: list[Piece] = []
        for piece in pieces:
            if type(piece) is Delta:
                self._said += tokens(piece)
                if self._said > self._covered:
                    self._said -= tokens(piece)
                    break
            elif not isinstance(piece, Finish):
                paid.append(piece)
                continue
            paid.append(piece)
        return paid


def _of_calls(delta: Delta) -> int:
    """Of a delta without text: a tool call's name and arguments, or nothing but a role or logprobs."""
    calls = [call.get("function") or call.get("custom") or {} for call in delta.tool_calls or ()]
    if delta.function_call:
        calls.append(delta.function_call)
    size = sum(len(part) for call in calls for key in ("name", "arguments", "input") if isinstance(part := call.get(key), str))
    return (size + 3) // 4 if size > _LONGEST_TOKEN else min(len(calls), 1)


async def _patiently(ask: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """An outage is no reason to stop an answer that is being given; it goes on for as far as it was paid."""
    while True:
        try:
            return await ask()
        except Unavailable as error:
            _log.warning("an answer may have to wait to be paid for: %s", error)
            await asyncio.sleep(_PATIENCE_S)
