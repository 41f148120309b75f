"""Keepalives hold connections and time-outs, and leave no trace in what a stream says."""

from __future__ import annotations

import json
from typing import Any

from gateway.wire.chat import ChatEncoder
from tests.wire.eventstream import read
from tests.wire.logs import LogBook, plain, run

BEAT = b": keepalive\n"


def minutes_of_silence(encoder: ChatEncoder, seconds: int) -> list[bytes]:
    return [encoder.keepalive(float(s)) for s in range(10, seconds + 1, 10)]


def deltas(stream: bytes) -> list[Any]:
    return [json.loads(event.data)["choices"][0]["delta"] for event in read(stream) if event.data != "[DONE]"]


def test_a_comment_has_one_newline() -> None:
    """With a blank line behind it, openai-python parses an empty event once any `id:` line was sent."""
    assert ChatEncoder(run()).keepalive(10.0) == BEAT


def test_every_further_minute_brings_a_chunk() -> None:
    encoder = ChatEncoder(run())
    encoder.encode(plain().entries[:3])
    beats = minutes_of_silence(encoder, 180)
    assert [beat == BEAT for beat in beats] == [s % 60 != 0 for s in range(10, 181, 10)]
    chunk = json.loads(read(beats[5])[0].data)
    assert chunk["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}]
    assert chunk["headgate_keepalive"] is True


def test_data_starts_the_count_again() -> None:
    encoder = ChatEncoder(run())
    encoder.encode(plain().entries[:3])
    minutes_of_silence(encoder, 120)
    encoder.encode(plain().entries[3:4])
    assert [beat == BEAT for beat in minutes_of_silence(encoder, 60)] == [True] * 5 + [False]


def test_before_any_output_the_chunk_brings_the_role_and_the_role_chunk_does_not() -> None:
    """A first chunk without role makes LangChain JS lose tool calls; a second role makes "assistantassistant"."""
    encoder = ChatEncoder(run())
    early = b"".join(minutes_of_silence(encoder, 120))
    stream = early + encoder.encode(plain().entries)
    assert deltas(stream) == [{"role": "assistant"}, {}, {}, {"content": "Hello"}, {"content": " world"}, {}]


def test_keepalives_do_not_count_as_chunks() -> None:
    """The stream proper has as many chunks with early role as without, so a count from either resumes the other."""
    with_beats = ChatEncoder(run())
    minutes_of_silence(with_beats, 60)
    beaten = with_beats.encode(plain().entries)
    undisturbed = ChatEncoder(run()).encode(plain().entries)
    assert beaten.split(b"\n\n")[1:] == undisturbed.split(b"\n\n")[1:]


def test_a_resumed_client_had_the_role_before() -> None:
    encoder = ChatEncoder(run(), skip_chunks=1)
    encoder.encode(LogBook().started().entries)
    assert deltas(minutes_of_silence(encoder, 60)[-1]) == [{}]
    assert deltas(encoder.encode(plain().entries[2:])) == [{"content": "Hello"}, {"content": " world"}, {}]


def test_data_starts_the_count_again_also_when_keepalives_are_rare() -> None:
    encoder = ChatEncoder(run())
    encoder.encode(plain().entries[:3])
    assert encoder.keepalive(60.0) != BEAT
    encoder.encode(plain().entries[3:4])
    assert encoder.keepalive(60.0) != BEAT
