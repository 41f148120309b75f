"""What is no longer to be had is announced, at every door: trimmed, expired, and lost (P4, P6)."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis

from compat_tests.conftest import FEW_EVENTS
from compat_tests.doors import DOORS, BrokenOff, Door, Event, Refused, Server
from compat_tests.manifest import promise
from compat_tests.raw import script
from compat_tests.stage import staged
from compat_tests.watch import everywhere, reading, seen, shown
from orchestrator.embedded import Addresses


@pytest.fixture(scope="module")
def trimmed(forgetful: Server) -> str:
    """A run that has said more than is kept of it."""
    run = forgetful.submit("demo-none", script("rate 2000/s", "say 400 words"))
    assert list(reading(DOORS["sse"], forgetful, run))
    return run


def gap(run: str, missing_from: int, missing_to: int | None, resumes_at: int | None) -> Event:
    payload = {"missing_from": missing_from, "missing_to": missing_to, "resumes_at": resumes_at}
    return {"workflow_id": run, "type": "STREAM_GAP", "payload": payload}


@promise("doors.gap", "doors.replica")
def test_what_was_trimmed_is_announced_and_the_rest_follows(here: Server, forgetful: Server, trimmed: str, door: Door) -> None:
    """native.md §2-4, §6, P6: which events are missing, and the first that is there; every reader of every replica is told."""
    log = here.log(trimmed)
    first = log[0]["seq"]
    assert FEW_EVENTS <= len(log) < 300 < log[-1]["seq"]
    rest = shown(door, log)
    for server in (here, forgetful):
        assert seen(door, server, trimmed) == [gap(trimmed, 1, first - 1, first), *rest]
        assert seen(door, server, trimmed, "7") == [gap(trimmed, 8, first - 1, first), *rest]
        assert seen(door, server, trimmed, f"{log[0]['stream_id'].partition('-')[0]}-7")[0] == gap(trimmed, 8, first - 1, first)
        assert seen(door, server, trimmed, log[3]["stream_id"]) == rest[4:]


@promise("doors.gap", "doors.filter")
def test_a_gap_passes_every_filter(here: Server, trimmed: str, door: Door) -> None:
    """native.md §3: terminal events and gaps."""
    types = [event["type"] for event in seen(door, here, trimmed, types=["X_NOTHING"])]
    assert types == ["STREAM_GAP", "WORKFLOW_COMPLETED", "STREAM_END"]


@promise("doors.gap")
def test_the_chat_door_does_not_pretend(here: Server, trimmed: str) -> None:
    """openai.md §4: a text with a hole is an error, not an answer."""
    assert here.raw.resume(trimmed).error["code"] == "stream_gap"
    whole = here.raw.retrieve(trimmed)
    assert (whole.status, whole.error["code"]) == (410, "stream_gap")


class Forgetting:
    """Redis without its memory of a run, as after its expiry or the loss of its data."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url)

    def expire(self, run: str) -> None:
        """Once it is archived: it stands among the active runs first, and then among those that wait for the archive."""
        begun = time.monotonic()
        while self.redis.zscore("hg:active", run) is not None or self.redis.sismember("hg:archive", run):
            assert time.monotonic() - begun < 10, "it is not archived"
            time.sleep(0.02)
        self.lose(run)

    def lose(self, run: str) -> None:
        keys = self.redis.keys(f"hg:{{{run}}}:*")
        assert isinstance(keys, list)
        assert len(keys) >= 3
        self.redis.delete(*keys)


@pytest.fixture(scope="module")
def forgetting(backends: Addresses) -> Iterator[Forgetting]:
    forgetting = Forgetting(backends.redis)
    yield forgetting
    forgetting.redis.close()


@pytest.fixture(scope="module")
def expired(here: Server, forgetting: Forgetting) -> tuple[str, list[Event]]:
    """An archived run, and all that it once said."""
    run = here.submit("demo-none", script('tokens "a" "b" "c"'))
    assert list(reading(DOORS["sse"], here, run))
    log = here.log(run)
    forgetting.expire(run)
    return run, log


@promise("doors.expired")
def test_what_has_expired_is_answered_from_the_archive(there: Server, expired: tuple[str, list[Event]], door: Door) -> None:
    """design.md §5, P6: deltas are not kept, so a position on one is a gap; after any other, what is kept follows."""
    run, log = expired
    kept = [event for event in log if event["type"] != "LLM_PARTIAL"]
    assert len(kept) == len(log) - 3
    assert seen(door, there, run) == shown(door, kept)
    for event in log[:-1]:
        got = seen(door, there, run, event["stream_id"])
        if event in kept:
            assert got == shown(door, [each for each in kept if each["seq"] > event["seq"]])
        else:
            assert got == [gap(run, event["seq"] + 1, None, 1), *shown(door, kept)]


@promise("doors.lost", "ws.codes")
def test_a_log_that_is_lost_under_its_readers_is_told_to_them(here: Server, there: Server, forgetting: Forgetting) -> None:
    """native.md §4, §6, P4: nothing follows, and that is said: never a silence, and never an end as if all were well."""
    with staged(here) as stage:
        with everywhere(stage.run, there) as watches:
            for watch in watches.values():
                watch.until("AGENT_STARTED")
            forgetting.lose(stage.run)
            for (door, _), watch in watches.items():
                with pytest.raises(BrokenOff) as broken:
                    watch.end()
                assert watch.events[-1] == gap(stage.run, 3, None, None)
                if door.name == "websocket":
                    assert broken.value.how == 4408
        for door in DOORS.values():
            with pytest.raises(Refused) as refused:
                seen(door, there, stage.run, "2")
            assert (refused.value.status, refused.value.code) == (404, "run_not_found")
