"""How open answers end before they are complete, without a server: by whom, when, and in which words."""

from __future__ import annotations

import asyncio

import pytest

from gateway.errors import AccessEnded, Draining
from gateway.transports.drain import Drain
from orchestrator.errors import HeadgateError
from orchestrator.runs import Principal

NOW_S = 1_000_000.0
ALICE, BOB = Principal("acme", "alice"), Principal("acme", "bob")


def a_drain() -> Drain:
    return Drain(spread=lambda _: 0.0, clock=lambda: NOW_S)


class Answers:
    """Open answers, and how each ended."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.ended: dict[str, type[HeadgateError]] = {}

    async def open(self, name: str, bearer: Principal | None) -> asyncio.Task[None]:
        inside = asyncio.Event()

        async def answer() -> None:
            try:
                with self.drain.answer():
                    async with self.drain.until_closed(bearer):
                        inside.set()
                        await asyncio.Event().wait()
            except HeadgateError as error:
                self.ended[name] = type(error)

        task = asyncio.create_task(answer())
        await inside.wait()
        return task


async def test_a_key_takes_its_own_answers_with_it_and_nobody_elses() -> None:
    drain = a_drain()
    answers = Answers(drain)
    hers = [await answers.open("alice 1", ALICE), await answers.open("alice 2", ALICE)]
    others = [await answers.open("bob", BOB), await answers.open("nobody", None)]
    assert drain.bearers() == {"alice", "bob"}
    drain.expire({"alice": 0})
    await asyncio.gather(*hers)
    assert answers.ended == {"alice 1": AccessEnded, "alice 2": AccessEnded}
    assert drain.bearers() == {"bob"}
    await drain.finish(0.0, spread_s=0.0)
    await asyncio.gather(*others)
    assert answers.ended == {"alice 1": AccessEnded, "alice 2": AccessEnded, "bob": Draining, "nobody": Draining}


async def test_a_key_that_has_an_end_ends_its_answers_then() -> None:
    drain = a_drain()
    began = asyncio.get_running_loop().time()
    with pytest.raises(AccessEnded):
        async with drain.until_closed(Principal("acme", "alice", expires_ms=int(NOW_S * 1000) + 50)):
            await asyncio.Event().wait()
    assert 0.045 <= asyncio.get_running_loop().time() - began < 5


async def test_a_key_whose_end_has_passed_ends_an_answer_at_once() -> None:
    """It was good when its request was admitted, and the body took a while to arrive."""
    with pytest.raises(AccessEnded):
        async with a_drain().until_closed(Principal("acme", "alice", expires_ms=1)):
            await asyncio.Event().wait()


async def test_an_end_can_come_nearer_and_not_go_further_away() -> None:
    drain = a_drain()
    answers = Answers(drain)
    answer = await answers.open("alice", ALICE)
    drain.expire({"alice": int(NOW_S * 1000) + 20})
    drain.expire({"alice": int(NOW_S * 1000) + 3_600_000})
    await asyncio.wait_for(answer, 5)
    assert answers.ended == {"alice": AccessEnded}


async def test_ending_twice_is_ending_once_while_the_answer_says_its_last_words() -> None:
    """What comes after the end (a client that reads slowly) is not broken off a second time, nor is the server confused."""
    drain = a_drain()

    async def answer() -> None:
        async with drain.until_closed(ALICE):
            drain.expire({"alice": 0})
            try:
                await asyncio.Event().wait()
            finally:
                drain.expire({"alice": 0})
                await drain.finish(0.0, spread_s=0.0)

    with pytest.raises(AccessEnded):
        await answer()


async def test_a_time_out_of_the_answers_own_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with a_drain().until_closed(ALICE):
            raise TimeoutError
