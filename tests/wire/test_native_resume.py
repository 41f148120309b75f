"""A native stream can be cut anywhere, filtered or not, and its reader gets every event once, in order, and the end."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire.native import NativeEncoder
from orchestrator.events import ENDINGS, Entry
from orchestrator.streamlog.log import BEGINNING, Position, parse_position
from tests.wire import eventstream, websocketframes
from tests.wire.test_native import DOORS, GOLDEN, encoder

FILTERS = [
    frozenset[str](),
    frozenset({"LLM_PARTIAL"}),
    frozenset({"LLM_OUTPUT", "AGENT_STARTED"}),
    frozenset({"WORKFLOW_STARTED"}),
    frozenset({"X_NOBODY"}),
    frozenset({"STREAM_END"}),
]
ALWAYS = {*ENDINGS, "STREAM_END"}


def wanted(entries: Sequence[Entry], types: frozenset[str]) -> list[str]:
    return [entry.stream_id for entry in entries if not types or entry.event.type in types | ALWAYS]


def after(entries: Sequence[Entry], position: Position) -> list[Entry]:
    return [entry for entry in entries if entry.seq > position.seq]


def positions(door: str, stream: bytes) -> list[str]:
    """The positions a reader learns from whole frames."""
    if door == "websocket":
        return [json.loads(frame.payload)["stream_id"] for frame in websocketframes.read(stream)]
    return [each.id for each in eventstream.read(stream)]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("types", FILTERS, ids=lambda types: "+".join(sorted(types)) or "all")
@pytest.mark.parametrize("name", GOLDEN)
def test_after_any_event_the_rest_has_the_bytes_it_would_have_had(door: str, types: frozenset[str], name: str) -> None:
    entries = GOLDEN[name].entries
    at = [encoder(door, types).encode([entry]) for entry in entries]
    assert encoder(door, types).encode(entries) == b"".join(at)
    for cut in range(len(entries)):
        resumed = encoder(door, types)
        assert resumed.encode(entries[cut:]) == b"".join(at[cut:])
        assert resumed.ended


@pytest.mark.parametrize("types", FILTERS, ids=lambda types: "+".join(sorted(types)) or "all")
def test_cut_at_every_byte_a_reader_misses_nothing_and_gets_nothing_twice(types: frozenset[str]) -> None:
    """A frame that is cut in its middle was not received: its reader comes back with the position before it."""
    entries = GOLDEN["noise"].entries
    whole = encoder("sse", types).encode(entries)
    for cut in range(len(whole) + 1):
        got = eventstream.read(whole[:cut])
        position = parse_position(got[-1].id) if got else BEGINNING
        rest = after(entries, position)
        resumed = encoder("sse", types)
        more = eventstream.read(resumed.encode(rest) if rest else resumed.conclude())
        if not rest:
            assert [each.event for each in more] == ["done"]
            more = []
        assert got + more == eventstream.read(whole), cut


@given(st.data())
def test_no_filter_loses_a_position(data: st.DataObject) -> None:
    """Any filter, any batches, any number of reconnections, each with whatever the reader knows by then."""
    entries = GOLDEN[data.draw(st.sampled_from(sorted(GOLDEN)))].entries
    door = data.draw(st.sampled_from(DOORS))
    every = sorted({entry.event.type for entry in entries} | {"X_NOBODY", "WARNING"})
    types = frozenset(data.draw(st.sets(st.sampled_from(every))))
    got: list[str] = []
    ended = False
    while not ended:
        rest = after(entries, parse_position(got[-1] if got else ""))
        ended = read_some(data, encoder(door, types), door, rest, got)
    assert got == wanted(entries, types)


def read_some(data: st.DataObject, it: NativeEncoder, door: str, rest: list[Entry], got: list[str]) -> bool:
    """One connection: batch after batch until it ends or is cut. Whether the stream was read to its end."""
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        got += positions(door, it.encode(rest[:size]))
        rest = rest[size:]
        if rest and data.draw(st.booleans()):
            return False
    return it.ended
