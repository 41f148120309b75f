"""A run's log as an OpenAI chat completion stream.

Per choice: a role chunk, its deltas, one finish chunk; then one usage chunk if asked for; then `[DONE]`. A stream that cannot
end like that ends with one error event and nothing after it. The bytes depend on the log and the run's options alone, whatever
arrives together, so a stream can be resumed anywhere (`chat_resume`). The rules and who punishes their breach:
docs/reference/openai.md.

Keepalives are transport: they are not part of those bytes. A comment goes out whenever the pump asks; after every 60 s without
data a chunk with an empty delta does too, because some clients time parsed chunks. If nothing was said yet, that chunk must
bring the role (a first chunk without it breaks clients), so the role chunk proper is then sent with an empty delta in its
turn: the role comes first and once, and the number of chunks is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import OutputReset, StreamGap, envelope
from gateway.wire import sse
from gateway.wire.answer import Completed, Failed, Said, Unsaid
from gateway.wire.answer_choice import Choice
from gateway.wire.chat_answer import ChatAnswer
from gateway.wire.chat_chunk import ChunkShapes, encode
from gateway.wire.chat_resume import Resume
from orchestrator.errors import Failure
from orchestrator.events import Entry, EventType, Gap
from orchestrator.runs import Run
from orchestrator.streamlog.log import Position

KEEPALIVE_CHUNK_S = 60.0

_PARTIAL = EventType.LLM_PARTIAL.value


class ChatEncoder:
    """Implements `wire.encoder.Encoder`. Feed it the log from its first event, also when the client's place is further on.

    `turn_after`: the stream of a later turn, which began after this approval.
    """

    def __init__(self, run: Run, *, turn_after: str | None = None, skip_chunks: int = 0, after: Position | None = None) -> None:
        self.failure: Failure | None = None
        self.ended = False
        self.begun = False
        """The answer itself has begun; until then a failure can still become an HTTP status."""
        self._options = run.options
        self._agents = run.answers
        self._answer = ChatAnswer(run, turn_after)
        self._shapes = ChunkShapes(run, turn_after)
        self._resume = Resume(skip_chunks, after)
        self._opened = 0
        self._role_sent_early = False
        self._silences = 0
        self._before, self._after = sse.around(*self._shapes.around_content(0))
        self._plain: Choice | None = None
        """Choice 0, while its plain text needs nothing but to be put between `_before` and `_after`."""

    def encode(self, items: Sequence[Entry | Gap]) -> bytes:
        out: list[bytes] = []
        self._silences = 0
        before, after, agents, plain = self._before, self._after, self._agents, self._plain
        for item in items:
            if plain is not None and not isinstance(item, Gap):
                event = item.event
                text = event.message
                if event.payload is None and text is not None and event.type == _PARTIAL and event.agent_id in agents:
                    plain.content_chars += len(text)
                    json = encode(text)
                    out += (before, json if text.isascii() else sse.escape_text(json), after)
                    continue
            if self.ended:
                break
            self._item(item, out)
            plain = self._plain
        return b"".join(out)

    def headers(self) -> dict[str, str]:
        """What the response's headers say of the answer, as far as it has been given."""
        return self._answer.headers()

    def conclude(self) -> bytes:
        """A chat stream is folded from the log's beginning, so a log without its end gives none."""
        return b""

    def keepalive(self, silent_s: float) -> bytes:
        if self.ended:
            return b""
        silences = int(silent_s // KEEPALIVE_CHUNK_S)
        due, self._silences = silences > self._silences, silences
        beat = sse.comment("keepalive")
        if not due:
            return beat
        if self._opened or self._role_sent_early or not self._resume.reached:
            return beat + sse.frame(self._shapes.keepalive(b"{}"))
        self._role_sent_early = True
        return beat + sse.frame(self._shapes.keepalive(b'{"role":"assistant"}'))

    def interrupt(self, failure: Failure) -> bytes:
        if self.ended:  # after `[DONE]` or an error there is nothing left to say
            return b""
        out: list[bytes] = []
        self._fail(failure, out)
        return b"".join(out)

    def _item(self, item: Entry | Gap, out: list[bytes]) -> None:
        if isinstance(item, Gap):
            self._fail(StreamGap().failure(), out)
            return
        if not self._resume.reached and (unknown := self._resume.unknown(item)) is not None:
            self._refuse(unknown, out)
            return
        chunks: list[bytes] = []
        end = self._fold(item, chunks)
        self._deliver(item, chunks, out)
        if isinstance(end, Completed) and (overshot := self._resume.overshot(item)) is not None:
            self._refuse(overshot, out)
            return
        match end:
            case Failed(failure):
                self._fail(failure, out)
            case Completed():
                self._stop()
                out.append(sse.DONE)
            case None:
                self._find_plain()

    def _fold(self, entry: Entry, chunks: list[bytes]) -> Completed | Failed | None:
        """Append the chunks that the entry causes; tell how the stream ends, if it does."""
        answer = self._answer
        for piece in answer.fold(entry):
            match piece:
                case Said():
                    self._say(piece, entry, chunks)
                case Unsaid():
                    return Failed(OutputReset().failure())
                case Completed():
                    self._finish(chunks)
                    return piece
                case Failed():
                    return piece
        if self._options.events and not answer.concerns(entry.event):
            self._open(0, chunks)
            chunks.append(self._shapes.event(entry))
        return None

    def _say(self, said: Said, entry: Entry, chunks: list[bytes]) -> None:
        self.begun = True
        self._open(said.choice, chunks)
        chunk = self._shapes.said(said)
        if self._options.include_obfuscation:
            chunk = self._shapes.obfuscated(chunk, f"{entry.seq} {len(chunks)}")
        chunks.append(chunk)

    def _open(self, index: int, chunks: list[bytes]) -> None:
        """Role chunks up to this choice: lower ones come first, as accumulating clients expect."""
        while self._opened <= index:
            early = self._opened == 0 and self._role_sent_early
            chunks.append(self._shapes.choice(0) if early else self._shapes.role(self._opened))
            self._opened += 1

    def _finish(self, chunks: list[bytes]) -> None:
        for index, choice in enumerate(self._answer.choices):
            chunks.append(self._shapes.finish(index, self._answer.finish_reason(choice)))
        if self._options.include_usage:
            chunks.append(self._shapes.usage(self._answer.usage))

    def _deliver(self, entry: Entry, chunks: list[bytes], out: list[bytes]) -> None:
        """Only the last chunk of an event carries its position: whoever resumes after it has the whole event."""
        if not self._resume.reached:
            chunks = self._resume.rest(entry, chunks)
        if not chunks:
            return
        out += [sse.frame(chunk) for chunk in chunks[:-1]]
        out.append(sse.frame(chunks[-1], id=entry.stream_id if self._options.stream_ids else None))

    def _refuse(self, failure: Failure, out: list[bytes]) -> None:
        """The client's place is not one of this stream: nothing of the answer is given, however much was folded to know."""
        self.begun = False
        self._fail(failure, out)

    def _fail(self, failure: Failure, out: list[bytes]) -> None:
        self.failure = failure
        self._stop()
        out.append(sse.frame(envelope(failure)))

    def _stop(self) -> None:
        self.ended = True
        self._plain = None

    def _find_plain(self) -> None:
        simple = self._answer.streamed and not (self._options.stream_ids or self._options.include_obfuscation)
        if simple and self._opened and self._answer.choices and self._answer.choices[0].spoke and self._resume.reached:
            self._plain = self._answer.choices[0]
