"""Which upstream gave an answer, and at which try, in the headers of chat answers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.http.test_chat_route import CHAT, ask, bearer, settings

SERVED = ("x-headgate-upstream", "x-headgate-attempt")


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(hold_s=0.3), engine)


async def served(server: Any, script: str, *, stream: bool, **fields: Any) -> tuple[Any, ...]:
    answer = await server.ask("POST", CHAT, headers=bearer(), json=ask(script, stream=stream, **fields))
    return tuple(answer.headers.get(name) for name in SERVED)


@pytest.mark.parametrize("stream", [True, False])
class TestHeaders:
    async def test_name_the_upstream_of_the_first_output(self, server: Any, stream: bool) -> None:
        assert await served(server, 'say "Hello"', stream=stream) == ("demo", "1")
        assert await served(server, "call f {}", stream=stream) == ("demo", "1")

    async def test_count_the_tries(self, server: Any, stream: bool) -> None:
        assert await served(server, 'twice status 503; say "Hello"', model="stubborn", stream=stream) == ("demo", "3")

    async def test_say_nothing_of_an_answer_that_is_given_again(self, server: Any, stream: bool) -> None:
        asked = {"model": "cached", "temperature": 0}
        assert await served(server, 'say "Hello"', stream=stream, **asked) == ("demo", "1")
        assert await served(server, 'say "Hello"', stream=stream, **asked) == (None, None)

    async def test_say_nothing_of_a_failure(self, server: Any, stream: bool) -> None:
        assert await served(server, "status 500", stream=stream) == (None, None)


async def test_headers_that_had_to_leave_before_the_first_output_do_not_guess(server: Any) -> None:
    assert await served(server, 'wait 600ms; say "Hello"', stream=True) == (None, None)
    assert await served(server, 'wait 600ms; say "Hello"', stream=False) == ("demo", "1")


async def test_a_resumed_stream_says_it_too(server: Any) -> None:
    first = await server.ask("POST", CHAT, headers=bearer(), json=ask('say "Hello there"'))
    path = f"{CHAT}/{first.headers['x-workflow-id']}"
    for asked in ("?stream=true&starting_after=2", ""):
        answer = await server.ask("GET", path + asked, headers=bearer())
        assert tuple(answer.headers.get(name) for name in SERVED) == ("demo", "1")
