"""The native doors' encoders: a run's entries as server-sent events, and as WebSocket messages.

Every event is the one envelope (`Entry.envelope`); what differs is the framing. An event's frame depends on the event and on
the options that the stream was asked for with, and on nothing before it, so a stream that is resumed anywhere continues with
the bytes that it would have had.

A filter hides events when they are written and never otherwise: positions move over them, and what ends a stream passes every
filter. So do the things that are said to one reader only and stand in no log: `STREAM_GAP`, and `ERROR_OCCURRED` with the scope
`stream` where a stream breaks off although its run goes on. They have neither a position nor a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from gateway.errors import StreamGap
from gateway.wire import sse, websocket
from gateway.wire.event_types import SSE_NAMES
from orchestrator.errors import Failure
from orchestrator.events import ENDINGS, Entry, EventType, Gap

_UNFILTERED: frozenset[str] = ENDINGS | {EventType.STREAM_END, EventType.STREAM_GAP}

_DONE = b"[DONE]"
_MEMO_BYTES = 256 * 1024

_encode = msgspec.json.Encoder().encode


class Rendering(ABC):
    """How one run's events look to all readers who asked for them alike. `types` are those let through; none filters nothing.

    Of a run that a thousand watch, a thousand ask for the same frames at the same moment: if there is more than one reader, the
    last answer is remembered.
    """

    keepalive = b""

    def __init__(self, run_id: str, types: frozenset[str]) -> None:
        self.shared = False
        self._run_id = run_id
        self._shown = types | _UNFILTERED if types else None
        self._first: Entry | None = None
        self._last: Entry | None = None
        self._frames = b""

    def frames(self, entries: Sequence[Entry]) -> bytes:
        """`entries` follow each other in the log, so the first and the last tell which they are."""
        first, last = entries[0], entries[-1]
        if first is self._first and last is self._last:
            return self._frames
        frames = b"".join([self.event(entry) for entry in entries if self._shown is None or entry.event.type in self._shown])
        if self.shared and len(frames) <= _MEMO_BYTES:
            self._first, self._last, self._frames = first, last, frames
        return frames

    @abstractmethod
    def event(self, entry: Entry) -> bytes:
        """An event's frame."""

    @abstractmethod
    def aside(self, type: EventType, message: str | None = None, payload: Mapping[str, Any] | None = None) -> bytes:
        """The frame of something that is said to one reader only."""

    @abstractmethod
    def broken(self, failure: Failure) -> bytes:
        """What tells a reader that the stream breaks off here."""

    def _aside(self, type: EventType, message: str | None, payload: Mapping[str, Any] | None) -> bytes:
        facts = {"workflow_id": self._run_id, "type": type, "message": message, "payload": payload}
        return _encode({name: fact for name, fact in facts.items() if fact is not None})


class SseRendering(Rendering):
    """Server-sent events. `raw_names`: the event's name is its type, whatever the type."""

    keepalive = sse.comment("keepalive")

    def __init__(self, run_id: str, types: frozenset[str], raw_names: bool) -> None:
        super().__init__(run_id, types)
        self._names: Mapping[str, str] = {} if raw_names else SSE_NAMES

    def event(self, entry: Entry) -> bytes:
        event = entry.event
        envelope = entry.envelope(self._run_id)
        match event.type:
            case EventType.LLM_PARTIAL:
                envelope = b'%b,"delta":%b}' % (envelope[:-1], _encode(event.message or ""))
            case EventType.LLM_OUTPUT:
                response, metadata = _encode(event.message or ""), _encode(event.payload or {})
                envelope = b'%b,"response":%b,"metadata":%b}' % (envelope[:-1], response, metadata)
            case EventType.STREAM_END:
                envelope = _DONE
        return sse.frame(envelope, event=self._names.get(event.type, event.type), id=entry.stream_id)

    def aside(self, type: EventType, message: str | None = None, payload: Mapping[str, Any] | None = None) -> bytes:
        data = _DONE if type is EventType.STREAM_END else self._aside(type, message, payload)
        return sse.frame(data, event=self._names.get(type, type))

    def broken(self, failure: Failure) -> bytes:
        payload = {"scope": "stream", "severity": "error", "code": failure.code, "retryable": failure.retryable}
        return self.aside(EventType.ERROR_OCCURRED, failure.message, payload)


class WebSocketRendering(Rendering):
    """WebSocket messages, one per event. A stream that breaks off says so in the code that its socket is closed with."""

    def event(self, entry: Entry) -> bytes:
        return websocket.text(entry.envelope(self._run_id))

    def aside(self, type: EventType, message: str | None = None, payload: Mapping[str, Any] | None = None) -> bytes:
        return websocket.text(self._aside(type, message, payload))

    def broken(self, failure: Failure) -> bytes:
        return b""


class Renderings:
    """The renderings that readers of this process share, each for as long as somebody reads."""

    def __init__(self) -> None:
        self._shared: WeakValueDictionary[Hashable, Rendering] = WeakValueDictionary()

    def sse(self, run_id: str, types: frozenset[str] = frozenset(), *, raw_names: bool = False) -> Rendering:
        return self._share(("sse", run_id, types, raw_names), lambda: SseRendering(run_id, types, raw_names))

    def websocket(self, run_id: str, types: frozenset[str] = frozenset()) -> Rendering:
        return self._share(("websocket", run_id, types), lambda: WebSocketRendering(run_id, types))

    def _share(self, key: Hashable, make: Callable[[], Rendering]) -> Rendering:
        rendering = self._shared.get(key)
        if rendering is None:
            rendering = self._shared[key] = make()
        else:
            rendering.shared = True
        return rendering


class NativeEncoder:
    """`wire.encoder.Encoder` over a rendering. A run that failed is a complete stream: its events say how it ended."""

    begun = True

    def __init__(self, rendering: Rendering) -> None:
        self.failure: Failure | None = None
        self.ended = False
        self._rendering = rendering

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        out: list[bytes] = []
        entries: list[Entry] = []
        for item in items:
            if isinstance(item, Gap):
                if entries:
                    out.append(self._rendering.frames(entries))
                    entries = []
                out.append(self._gap(item))
            else:
                entries.append(item)
        if entries:
            out.append(self._rendering.frames(entries))
            self.ended = entries[-1].is_end
        return b"".join(out)

    def conclude(self) -> bytes:
        """The reader had everything already, the end included. It is told again that this was all."""
        self.ended = True
        return self._rendering.aside(EventType.STREAM_END)

    def keepalive(self, silent_s: float) -> bytes:
        return self._rendering.keepalive

    def interrupt(self, failure: Failure) -> bytes:
        self.failure = failure
        self.ended = True
        return self._rendering.broken(failure)

    def _gap(self, gap: Gap) -> bytes:
        """A gap with nothing behind it is the last that can be said: the log is gone, its ending too."""
        if gap.resumes_at is None:
            self.failure = StreamGap().failure()
            self.ended = True
        return self._rendering.aside(EventType.STREAM_GAP, payload=msgspec.structs.asdict(gap))


def opening(retry_ms: int) -> bytes:
    """The first bytes of a native event stream: it stands, and this is how long to wait before coming back when it breaks."""
    return sse.comment("connected") + sse.retry(retry_ms)
