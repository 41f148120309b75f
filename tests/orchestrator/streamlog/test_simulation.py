"""P3: no hole and no repeat between replay and live, in twenty thousand seeded schedules; and proof that they can fail."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrator.events import Entry
from orchestrator.streamlog.channel import Channel
from orchestrator.streamlog.log import Batch
from tests.orchestrator.streamlog.simulation import told

STORIES = 20_000
CHUNK = 2_500


@pytest.mark.parametrize("first", range(0, STORIES, CHUNK))
def test_every_reader_gets_every_event_once_in_order(first: int) -> None:
    assert told(range(first, first + CHUNK)) == []


def test_a_fan_out_that_ignores_holes_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saboteur: take whatever arrives, as a naive hub does."""

    def feed(channel: Channel, batch: Batch) -> bool:
        channel._extend(batch.entries)
        return True

    monkeypatch.setattr(Channel, "feed", feed)
    assert told(range(200))


def test_subscribing_from_now_on_after_a_replay_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saboteur: a reader that is behind the ring skips to what the ring has."""
    since = Channel.since

    def skipping(channel: Channel, seq: int, ms: int | None, limit: int) -> Sequence[Entry] | None:
        found = since(channel, seq, ms, limit)
        return channel._entries if found is None else found

    monkeypatch.setattr(Channel, "since", skipping)
    assert told(range(200))
