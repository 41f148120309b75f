"""One idempotency key, one run: whoever repeats a submission, whenever, in whichever process, and whoever dies meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from orchestrator.engine import DEPARTED, Idempotency, Submission
from orchestrator.errors import IdempotencyKeyReused, RunConflict, Unavailable
from orchestrator.events import Entry
from orchestrator.runs import Principal, Run, RunState
from orchestrator.streamlog.log import LogUnavailable, Reservation
from tests.orchestrator.engines import ACME, OTHER, script
from tests.orchestrator.processes import Process, Shared, kinds


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
async def here(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process() as process:
        yield process


@pytest.fixture
async def there(shared: Shared) -> AsyncIterator[Process]:
    async with shared.process() as process:
        yield process


def asked(text: str, model: str = "direct", *, key: str = "k", digest: str = "same", **more: Any) -> Submission:
    return script(text, model, idempotency=Idempotency(key, digest, **more))


async def submit(process: Process, submission: Submission, principal: Principal = ACME) -> Run:
    return await process.engine.submit(principal, submission)


def calls(shared: Shared) -> int:
    return len(shared.upstream.witness.calls)


async def test_two_hundred_callers_in_two_processes_are_one_run(shared: Shared, here: Process, there: Process) -> None:
    runs = await asyncio.gather(*(submit((here, there)[number % 2], asked('say "one"')) for number in range(200)))
    assert len({run.id for run in runs}) == 1
    assert sum(not run.repeated for run in runs) == 1
    seen = await asyncio.gather(here.events(runs[0].id), there.events(runs[0].id))
    assert seen[0] == seen[1]
    assert calls(shared) == 1
    assert len(shared.store.records) == 1


async def test_a_slow_first_caller_does_not_take_the_events_from_under_a_reader(shared: Shared, here: Process) -> None:
    """Whoever opens a run prepares the fan-out for it. The first caller did so when the second was reading the run already, and
    that reader was left with a channel that nobody fed any more."""
    first_reserved, go_on = asyncio.Event(), asyncio.Event()

    async def slow(operation: str, point: str) -> None:
        if (operation, point) == ("reserve", "answered") and not first_reserved.is_set():
            first_reserved.set()
            await go_on.wait()

    shared.store.checkpoint = slow
    first = asyncio.create_task(submit(here, asked('say "one"; hang')))
    await first_reserved.wait()
    second = await submit(here, asked('say "one"; hang'))
    async with here.engine.subscribe(ACME, second.id) as subscription:
        seen = [item.seq for item in await subscription.next(5.0) if isinstance(item, Entry)]
        go_on.set()
        assert (await first).repeated
        await here.engine.cancel(ACME, second.id)
        while not subscription.ended:
            items = await subscription.next(2.0)
            assert items
            seen += [item.seq for item in items if isinstance(item, Entry)]
    assert seen == list(range(1, len(seen) + 1))


async def test_a_later_caller_gets_the_run_that_has_ended(shared: Shared, here: Process, there: Process) -> None:
    first = await submit(here, asked('say "one"'))
    events = await here.events(first.id)
    again = await submit(there, asked('say "one"'))
    assert (again.id, again.repeated, again.created_ms) == (first.id, True, first.created_ms)
    assert await there.events(again.id) == events
    assert calls(shared) == 1
    assert here.metrics.calls.count("started") + there.metrics.calls.count("started") == 1


async def test_another_request_with_the_key_is_refused_and_the_run_goes_on(shared: Shared, here: Process, there: Process) -> None:
    first = await submit(here, asked("hang"))
    for process in (here, there):
        with pytest.raises(IdempotencyKeyReused) as caught:
            await submit(process, asked('say "two"', digest="another"))
        assert (caught.value.status, caught.value.code) == (409, "idempotency_key_reused")
    assert list(shared.store.records) == [first.id]
    assert not (await here.engine.get(ACME, first.id)).state.ended


async def test_another_tenants_key_is_another_key(here: Process) -> None:
    mine = await submit(here, asked('say "one"'))
    theirs = await submit(here, asked('say "two"', digest="another"), OTHER)
    assert mine.id != theirs.id
    assert not theirs.repeated
    await here.events(theirs.id, OTHER)


async def test_a_run_whose_first_caller_died_before_it_was_opened_is_opened_by_the_next_at_once(
    shared: Shared, here: Process, there: Process
) -> None:
    """The key was reserved by a process that is gone. Nobody has to wait for it, and if it is not gone it does no harm."""
    dead = f"task-{7:032x}"
    await here.log.reserve(ACME.tenant, "k", Reservation(dead, "same"))
    runs = await asyncio.gather(*(submit((here, there)[number % 2], asked('say "one"')) for number in range(20)))
    assert {run.id for run in runs} == {dead}
    assert sum(not run.repeated for run in runs) == 1
    assert kinds(await there.events(dead))[-1] == "STREAM_END"
    assert calls(shared) == 1


async def test_a_first_caller_that_was_only_slow_finds_its_run_begun(shared: Shared, here: Process, there: Process) -> None:
    reserved, go_on = asyncio.Event(), asyncio.Event()

    async def slow(operation: str, point: str) -> None:
        if operation == "open" and point == "sent" and not reserved.is_set():
            reserved.set()
            await go_on.wait()

    shared.store.checkpoint = slow
    first = asyncio.create_task(submit(here, asked('say "one"')))
    await reserved.wait()
    second = await submit(there, asked('say "one"'))
    go_on.set()
    assert ((await first).id, (await first).repeated, second.repeated) == (second.id, True, False)
    await there.events(second.id)
    assert calls(shared) == 1


@pytest.mark.parametrize(
    ("text", "again"),
    [("status 400", False), ("status 429", True), ("status 500", True), ('say "one"; cut', True)],
)
async def test_a_failure_is_final_unless_the_client_is_told_to_try_again(
    shared: Shared, here: Process, text: str, again: bool
) -> None:
    first = await submit(here, asked(text))
    await here.events(first.id)
    failure = (await here.engine.details(ACME, first.id)).failure
    assert failure is not None
    assert failure.retryable is again
    second = await submit(here, asked(text))
    assert (second.id != first.id, second.repeated) == (again, not again)
    await here.events(second.id)


async def test_of_those_who_try_again_one_begins_the_next_run(shared: Shared, here: Process, there: Process) -> None:
    first = await submit(here, asked("status 500"))
    await here.events(first.id)
    before = calls(shared)
    shared.upstream.witness.calls.clear()
    runs = await asyncio.gather(*(submit((here, there)[number % 2], asked("hang")) for number in range(50)))
    assert len({run.id for run in runs}) == 1
    assert runs[0].id != first.id
    await here.until(runs[0].id, "AGENT_STARTED")
    assert (before, calls(shared)) == (1, 1)


async def test_what_a_leaving_client_cancelled_can_be_asked_again_and_what_it_cancelled_itself_cannot(here: Process) -> None:
    for reason, again in ((DEPARTED, True), ("enough", False), (None, False)):
        submission = asked("hang", key=f"k-{reason}")
        first = await submit(here, submission)
        await here.engine.cancel(ACME, first.id, reason)
        soon = await submit(here, submission)  # before it has stopped, if it is quick enough
        await here.events(first.id)
        late = await submit(here, submission)
        assert (soon.id != first.id, late.id) == (again, soon.id)


async def test_a_run_that_could_not_be_started_does_not_keep_its_key(here: Process) -> None:
    """The durable engine is away: both are told to try again, and neither gets the other's failure."""
    for _ in range(2):
        with pytest.raises(Unavailable):
            await submit(here, asked('say "one"', "durable"))
    assert here.metrics.calls.count("started") == 2


async def test_a_log_that_does_not_answer_begins_nothing(shared: Shared, here: Process) -> None:
    async def away(operation: str, point: str) -> None:
        if operation == "reserve":
            raise LogUnavailable

    shared.store.checkpoint = away
    with pytest.raises(LogUnavailable):
        await submit(here, asked('say "one"'))
    assert not shared.store.records


async def test_the_key_lasts_as_long_as_the_log(shared: Shared, here: Process) -> None:
    now = [shared.clock.time()]
    shared.store._clock = lambda: now[0]
    first = await submit(here, asked("hang"))
    now[0] += 20 * 3600
    assert (await submit(here, asked("hang"))).id == first.id  # it goes on, so its key begins to count anew
    now[0] += 3600
    await here.engine.cancel(ACME, first.id)
    await here.events(first.id)
    now[0] += 22 * 3600
    assert (await submit(here, asked("hang"))).id == first.id
    now[0] += 2 * 3600
    assert (await submit(here, asked("hang"))).id != first.id


async def test_one_that_begins_anew_is_what_later_ones_repeat(here: Process) -> None:
    first = await submit(here, asked('say "one"', anew=True))
    second = await submit(here, asked('say "one"', anew=True))
    third = await submit(here, asked('say "one"'))
    assert first.id != second.id
    assert (third.id, third.repeated, second.repeated) == (second.id, True, False)
    await here.events(first.id)
    await here.events(second.id)


CHOSEN = "task-" + "0a" * 16


def chosen(text: str, **more: Any) -> Submission:
    return msgspec.structs.replace(asked(text, **more), run_id=CHOSEN)


async def test_a_repetition_that_brings_the_id_along_gets_the_run_of_that_id(
    shared: Shared, here: Process, there: Process
) -> None:
    """It was told that there is such a run already, which was its own."""
    runs = await asyncio.gather(*(submit((here, there)[number % 2], chosen('say "one"')) for number in range(20)))
    assert {run.id for run in runs} == {CHOSEN}
    assert sum(not run.repeated for run in runs) == 1
    await here.events(CHOSEN)
    assert (await submit(there, chosen('say "one"'))).repeated
    assert calls(shared) == 1


async def test_one_that_brings_the_id_along_gets_its_run_however_it_ended(here: Process) -> None:
    """There can be no other run of that id."""
    await submit(here, chosen("error 503"))
    await here.events(CHOSEN)
    again = await submit(here, chosen("error 503"))
    assert (again.id, again.repeated, again.state) == (CHOSEN, True, RunState.FAILED)


@pytest.mark.parametrize(
    ("first", "second", "principal"),
    [
        (chosen('say "one"'), chosen('say "one"', key="other"), ACME),
        (chosen('say "one"'), chosen('say "one"', digest="other"), ACME),
        (chosen('say "one"'), chosen('say "one"'), OTHER),
        (chosen('say "one"'), script('say "one"', "direct", run_id=CHOSEN), ACME),
        (script('say "one"', "direct", run_id=CHOSEN), chosen('say "one"'), ACME),
    ],
    ids=["another key", "another request", "another tenant", "no key", "no key at first"],
)
async def test_the_id_of_another_request_is_taken(
    here: Process, first: Submission, second: Submission, principal: Principal
) -> None:
    assert not (await submit(here, first)).repeated
    with pytest.raises(RunConflict):
        await submit(here, second, principal)


async def test_a_key_stands_for_one_id(here: Process) -> None:
    await submit(here, chosen('say "one"'))
    with pytest.raises(IdempotencyKeyReused):
        await submit(here, msgspec.structs.replace(asked('say "one"'), run_id="task-" + "0b" * 16))


async def test_who_leaves_while_a_run_is_opened_leaves_nothing_to_be_started(shared: Shared, here: Process) -> None:
    """A gateway that was lost took its call with it: the run was in the log of its orchestrator, and the janitor would have
    executed it for nobody, without the places and the budget that had been given back."""
    opened = asyncio.Event()

    async def stuck(operation: str, point: str) -> None:
        if (operation, point) == ("open", "answered") and not opened.is_set():
            opened.set()
            await asyncio.Event().wait()

    shared.store.checkpoint = stuck
    leaving = asyncio.create_task(submit(here, script('say "one"', "durable")))
    await opened.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    [run_id] = shared.store.records
    assert [event.type for event in await here.events(run_id)] == ["WORKFLOW_STARTED", "WORKFLOW_FAILED", "STREAM_END"]
