"""Runs: ids that sort and cannot be guessed, and the moves between states."""

from __future__ import annotations

import random
import secrets
import uuid

import pytest

from orchestrator.runs import MOVES, RunState, is_run_id, new_run_id


def test_an_id_is_a_uuid_of_version_7() -> None:
    for _ in range(200):
        now_ms = random.randrange(1 << 48)
        run_id = new_run_id(now_ms, secrets.token_bytes)
        assert is_run_id(run_id)
        value = uuid.UUID(run_id.removeprefix("task-"))
        assert value.version == 7
        assert value.variant == uuid.RFC_4122
        assert value.int >> 80 == now_ms


def test_every_random_bit_counts() -> None:
    """74 of the 80 bits that are asked for are used, each where no other is."""
    zero = int(new_run_id(0, lambda n: bytes(n)).removeprefix("task-"), 16)
    changed = 0
    for bit in range(80):
        one = int(new_run_id(0, lambda n, bit=bit: (1 << bit).to_bytes(n)).removeprefix("task-"), 16)  # type: ignore[misc]
        assert (one ^ zero).bit_count() <= 1
        assert not changed & (one ^ zero)
        changed |= one ^ zero
    assert changed.bit_count() == 74


def test_ids_sort_by_the_millisecond() -> None:
    ids = [new_run_id(ms, secrets.token_bytes) for ms in range(1_700_000_000_000, 1_700_000_000_500)]
    assert ids == sorted(ids)
    assert len({run_id[: len("task-") + 12] for run_id in ids}) == 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "task-",
        "0" * 32,
        "task-" + "0" * 31,
        "task-" + "0" * 33,
        "task-" + "A" * 32,
        "task-" + "g" * 32,
        "task-" + "\u0660" * 32,
        "TASK-" + "0" * 32,
        " task-" + "0" * 32,
        "task-" + "0" * 32 + "\n",
        "task-" + "0" * 30 + "}:",
        "task-" + "0" * 31 + "\0",
        "x" * 1_000_000,
    ],
)
def test_what_is_no_id_reaches_no_key(text: str) -> None:
    assert not is_run_id(text)


def test_a_run_that_ended_stays_as_it_ended() -> None:
    ended = {state for state in RunState if state.ended}
    assert ended == {RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED, RunState.TIMEOUT}
    for state in RunState:
        assert MOVES[state] == frozenset() if state.ended else ended <= MOVES[state]
    assert RunState.QUEUED not in frozenset().union(*MOVES.values())
