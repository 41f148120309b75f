"""Events: timestamps, envelopes that parse back, and what is told from bytes without decoding."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.events import Entry, Event, EventType, Timestamps, decode, encode, timestamp

AT = "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1, "1970-01-01T00:00:00.001Z"),
        (1_767_225_599_999, "2025-12-31T23:59:59.999Z"),
        (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
        (1_709_164_800_050, "2024-02-29T00:00:00.050Z"),
    ],
)
def test_a_timestamp_is_rfc_3339_in_utc_with_milliseconds(ms: int, text: str) -> None:
    assert timestamp(ms) == text
    assert Timestamps(lambda: ms / 1000 + 1e-7).now() == text
    assert datetime.fromisoformat(text) == datetime.fromtimestamp(ms / 1000, UTC)


def test_timestamps_follow_the_clock_also_when_it_goes_back() -> None:
    times = [1.0, 1.0, 1.125, 1.875, 2.0, 60.5, 1.0]
    clock = iter(times)
    stamps = Timestamps(lambda: next(clock))
    assert [stamps.now() for _ in times] == [timestamp(round(time * 1000)) for time in times]


@pytest.mark.parametrize(
    "event",
    [
        Event(EventType.WORKFLOW_STARTED, AT),
        Event(EventType.LLM_PARTIAL, AT, "agent", "text"),
        Event(EventType.LLM_PARTIAL, AT, "agent", ""),
        Event(EventType.LLM_PARTIAL, AT, "agent", 'quote " back \\ \n\r\t\0\x1f \u2028\u2029\u0085\ufeff é 🜁 data: id: event:'),
        Event("X_THEIR_OWN", AT, payload={"deep": [{"a": None, "b": [1, 2.5, True, "x"]}], "": ""}),
        Event("NOT_A_TYPE_WE_KNOW", AT, payload={}),
    ],
    ids=lambda event: event.type,
)
def test_an_envelope_is_one_line_that_parses_back(event: Event) -> None:
    entry = Entry(7, 1_700_000_000_123, encode(event))
    envelope = entry.envelope("task-abc")
    assert b"\n" not in envelope
    assert b"\r" not in envelope
    expected: dict[str, Any] = {
        "workflow_id": "task-abc",
        "seq": 7,
        "stream_id": "1700000000123-7",
        "type": event.type,
        "timestamp": event.timestamp,
    }
    expected |= {
        key: value
        for key, value in (("agent_id", event.agent_id), ("message", event.message), ("payload", event.payload))
        if value is not None
    }
    assert json.loads(envelope) == expected
    assert decode(entry.body) == event == entry.event


@pytest.mark.parametrize("kind", [*EventType, "X_LLM_PARTIAL", "LLM_PARTIAL_", "STREAM_END_"])
def test_what_an_entry_is_can_be_told_from_its_bytes(kind: str) -> None:
    entry = Entry(1, 1, encode(Event(kind, AT, message='{"type":"STREAM_END"')))
    assert entry.is_end == (kind == EventType.STREAM_END)
    assert entry.is_delta == (kind == EventType.LLM_PARTIAL)
    assert entry.decoded is None


def test_entries_are_equal_by_position_and_bytes() -> None:
    body = encode(Event("X", AT))
    decoded = Entry(1, 2, body)
    assert decoded.event.type == "X"
    assert decoded == Entry(1, 2, body)
    assert hash(decoded) == hash(Entry(1, 2, body))
    assert decoded != Entry(1, 3, body)
    assert decoded != Entry(1, 2, encode(Event("Y", AT)))
    assert decoded != (1, 2, body)
