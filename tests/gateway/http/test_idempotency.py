"""`Idempotency-Key` and the retries of SDKs, over HTTP: who gets whose run, what is refused, and who cancels by leaving."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from openai import AsyncOpenAI, InternalServerError

from gateway.settings import Runs
from tests.gateway.http.conftest import read_answer
from tests.gateway.http.native import TASKS, assert_error
from tests.gateway.http.test_chat_route import CHAT, ask, bearer, raw_ask, settings, text

FLOWING = "rate 200/s; say 60 words"


def keyed(key: str = "k-1", bearer_key: str = "sk-a") -> dict[str, str]:
    return bearer(bearer_key, **{"Idempotency-Key": key})


@pytest.fixture
async def server(serve: Any, engine: Any) -> Any:
    return await serve(settings(), engine)


async def test_concurrent_and_later_callers_get_the_first_ones_bytes(server: Any, witness: Any) -> None:
    answers = await asyncio.gather(*(server.ask("POST", CHAT, headers=keyed(), json=ask(FLOWING)) for _ in range(30)))
    answers.append(await server.ask("POST", CHAT, headers=keyed(), json=ask(FLOWING)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].body.endswith(b"data: [DONE]\n\n")
    assert len({answer.headers["x-workflow-id"] for answer in answers}) == 1
    assert sorted(answer.headers.get("idempotency-replayed", "no") for answer in answers) == ["no", *["true"] * 30]
    assert len(witness.calls) == 1


async def test_the_age_of_what_is_replayed_is_not_measured(server: Any) -> None:
    """An hour after the first, a repetition would have told of chunks that took an hour to arrive."""
    counts = []
    for _ in range(2):
        await server.ask("POST", CHAT, headers=keyed(), json=ask('say "Hello"'))
        numbers = (await server.ask("GET", "/metrics", headers=bearer())).body.decode()
        counts += [line for line in numbers.splitlines() if line.startswith("headgate_chunk_age_seconds_count")]
    assert len(counts) == 2
    assert counts[0] == counts[1]


async def test_a_whole_answer_is_repeated_as_it_was(server: Any, witness: Any) -> None:
    body = ask('say "Hello"', stream=False)
    first, second = [await server.ask("POST", CHAT, headers=keyed(), json=body) for _ in range(2)]
    assert (first.body, first.status) == (second.body, 200)
    assert len(witness.calls) == 1


async def test_the_order_of_fields_is_no_difference(server: Any, witness: Any) -> None:
    body = ask('say "Hello"', temperature=1, top_p=1)
    await server.ask("POST", CHAT, headers=keyed(), json=body)
    again = await server.ask("POST", CHAT, headers=keyed(), json=dict(reversed(body.items())))
    assert again.headers["idempotency-replayed"] == "true"
    assert len(witness.calls) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"json": ask('say "Hello"')},
        {"json": ask('say "Hi"', temperature=0.5)},
        {"json": ask('say "Hi"', stream=False)},
        {"json": ask('say "Hi"', headgate_options={"on_disconnect": "continue"})},
        {"json": ask('say "Hi"'), "headers": {**keyed(), "X-Session-ID": "s-1"}},
        {"json": ask('say "Hi"'), "headers": {**keyed(), "X-Headgate-Stream-Ids": "true"}},
    ],
)
async def test_another_request_with_the_key_is_a_conflict_that_no_sdk_repeats(server: Any, witness: Any, other: Any) -> None:
    await server.ask("POST", CHAT, headers=keyed(), json=ask('say "Hi"'))
    answer = await server.ask("POST", CHAT, **{"headers": keyed(), **other})
    assert (answer.status, answer.json["error"]["code"]) == (409, "idempotency_key_reused")
    assert answer.headers["x-should-retry"] == "false"
    assert len(witness.calls) == 1


async def test_another_tenant_may_use_the_same_key(server: Any) -> None:
    mine = await server.ask("POST", CHAT, headers=keyed(), json=ask('say "mine"'))
    theirs = await server.ask("POST", CHAT, headers=keyed(bearer_key="sk-b"), json=ask('say "theirs"'))
    assert (text(mine.body), text(theirs.body)) == ("mine", "theirs")


@pytest.mark.parametrize("lines", [["Idempotency-Key: "], ["Idempotency-Key: a b"], [f"Idempotency-Key: {'k' * 256}"],
                                   ["Idempotency-Key: \xe9"], ["Idempotency-Key: a", "Idempotency-Key: a"]])  # fmt: skip
async def test_what_cannot_be_a_key(server: Any, witness: Any, lines: list[str]) -> None:
    (answer,) = await server.raw(raw_ask(ask('say "Hi"'), *lines), first=True)
    assert answer.status == 400
    assert answer.json["error"]["param"] == "Idempotency-Key"
    assert not witness.calls


async def test_the_longest_key(server: Any) -> None:
    answer = await server.ask("POST", CHAT, headers=keyed("~" * 255), json=ask('say "Hi"'))
    assert answer.status == 200


async def test_a_final_failure_is_repeated_and_any_other_is_tried_again(server: Any, witness: Any) -> None:
    for script, calls in (("status 400", 1), ("status 503", 2)):
        witness.calls.clear()
        answers = [await server.ask("POST", CHAT, headers=keyed(script.replace(" ", "")), json=ask(script)) for _ in range(2)]
        assert answers[0].status == answers[1].status >= 400
        assert len(witness.calls) == calls


class TestLeaving:
    """A client that leaves cancels nothing that others with its key are reading; the last one to leave cancels."""

    async def test_the_last_one_cancels(self, server: Any, witness: Any) -> None:
        body = ask("say 3 words; hang")
        async with server.connection() as (first, first_writer), server.connection() as (second, second_writer):
            for reader, writer in ((first, first_writer), (second, second_writer)):
                writer.write(raw_ask(body, "Idempotency-Key: k"))
                await reader.readuntil(b'"content"')
            (call,) = witness.calls
            first_writer.transport.abort()
            await server.ask("GET", "/readiness")
            assert not call.closed.is_set()
            (run_id,) = [task["task_id"] for task in (await server.ask("GET", TASKS, headers=bearer())).json["tasks"]]
            assert (await server.ask("GET", f"{TASKS}/{run_id}", headers=bearer())).json["status"].endswith("RUNNING")
            second_writer.transport.abort()
            async with asyncio.timeout(5):
                await call.closed.wait()

    async def test_who_comes_back_after_that_asks_anew(self, server: Any, witness: Any) -> None:
        heads = []
        for number in range(2):
            async with server.connection() as (reader, writer):
                writer.write(raw_ask(ask("say 2 words; hang"), "Idempotency-Key: k"))
                heads.append((await read_answer(reader, body=False)).headers)
                writer.transport.abort()
            async with asyncio.timeout(5):
                await witness.calls[number].closed.wait()
        assert heads[0]["x-workflow-id"] != heads[1]["x-workflow-id"]
        assert ["idempotency-replayed" in head for head in heads] == [False, False]


class TestTasks:
    async def test_a_repeated_submission_is_one_task(self, server: Any, witness: Any) -> None:
        body = {"query": '/script\nsay "hi"'}
        first = await server.ask("POST", TASKS, headers=keyed(), json=body)
        again = await server.ask("POST", f"{TASKS}/stream", headers=keyed(), json=body)
        assert first.json["task_id"] == again.json["task_id"]
        assert first.headers["x-session-id"] == again.headers["x-session-id"]
        assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
        assert (await server.ask("GET", TASKS, headers=bearer())).json["total_count"] == 1

    async def test_another_task_with_the_key_is_a_conflict(self, server: Any) -> None:
        await server.ask("POST", TASKS, headers=keyed(), json={"query": "/script\nsay 1 words"})
        answer = await server.ask("POST", TASKS, headers=keyed(), json={"query": "/script\nsay 2 words"})
        assert_error(answer, 409, "idempotency_key_reused")
        answer = await server.ask("POST", TASKS, headers=keyed("a b"), json={"query": "/script\nsay 1 words"})
        assert_error(answer, 400, "invalid_request")


class TestRetriesOfSdks:
    """`x-stainless-retry-count`, where it is switched on."""

    @pytest.fixture
    async def server(self, serve: Any, engine: Any) -> Any:
        return await serve(settings().model_copy(update={"runs": Runs(sdk_retries=True)}), engine)

    async def test_a_retry_gets_the_first_trys_run(self, server: Any, witness: Any) -> None:
        asked = [("0", 'say "a"'), ("1", 'say "a"'), ("0", 'say "b"'), ("0", 'say "a"'), ("2", 'say "a"'), ("x", 'say "a"')]
        ids, replayed = [], []
        for count, script in asked:
            headers = bearer(**{"x-stainless-retry-count": count})
            answer = await server.ask("POST", CHAT, headers=headers, json=ask(script))
            ids.append(answer.headers["x-workflow-id"])
            replayed.append("idempotency-replayed" in answer.headers)
        assert replayed == [False, True, False, False, True, False]
        assert (ids[1], ids[4]) == (ids[0], ids[3])
        assert len(set(ids)) == len(witness.calls) == 4

    async def test_another_api_keys_retry_is_its_own(self, server: Any) -> None:
        for key, count in (("sk-a", "0"), ("sk-b", "1")):
            headers = bearer(key, **{"x-stainless-retry-count": count})
            answer = await server.ask("POST", CHAT, headers=headers, json=ask('say "a"'))
            assert "idempotency-replayed" not in answer.headers


async def test_retries_of_sdks_are_requests_like_any_other_unless_switched_on(server: Any, witness: Any) -> None:
    for count in ("0", "1"):
        await server.ask("POST", CHAT, headers=bearer(**{"x-stainless-retry-count": count}), json=ask('say "a"'))
    assert len(witness.calls) == 2


async def test_each_try_of_the_official_sdk_is_one_where_a_retry_can_help(server: Any, witness: Any) -> None:
    """It sends the key with each of them, and was told the first one's failure again and again."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="sk-a", max_retries=1) as client:
        with pytest.raises(InternalServerError):
            await client.chat.completions.create(
                model="headgate-demo",
                messages=[{"role": "user", "content": "/script\nstatus 503"}],
                extra_headers={"Idempotency-Key": "k-sdk"},
            )
    assert len(witness.calls) == 2
