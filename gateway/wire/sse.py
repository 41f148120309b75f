"""Writing an event stream. The only place that knows its newlines (WHATWG HTML, section 9.2).

What goes in as one frame comes out of any conforming reader as one event, whatever is inside. The data is one line of JSON:
raw newlines in it can only be white space and become spaces. U+2028, U+2029 and U+0085 are legal inside JSON but end a line
for readers built on `splitlines`, so they leave as escapes.
"""

from __future__ import annotations

_LINE_ENDS = (
    (b"\xe2\x80\xa8", rb"\u2028"),
    (b"\xe2\x80\xa9", rb"\u2029"),
    (b"\xc2\x85", rb"\u0085"),
)
"""In UTF-8. None of these sequences can begin inside another character, and JSON has them only in strings."""

_NOT_IN_FIELDS = str.maketrans("", "", "\r\n\0\x85\u2028\u2029")


def escape(json: bytes) -> bytes:
    """The same JSON on one line for every reader."""
    if b"\n" in json or b"\r" in json:
        json = json.replace(b"\n", b" ").replace(b"\r", b" ")
    return json if json.isascii() else escape_text(json)


def escape_text(json: bytes) -> bytes:
    """The same for JSON without white space that is not all ASCII."""
    for raw, escaped in _LINE_ENDS:
        json = json.replace(raw, escaped)
    return json


def frame(json: bytes, *, event: str | None = None, id: str | None = None) -> bytes:
    """One event: its id and name if given, then one line of data."""
    head = b""
    if id is not None:
        head = b"id: " + _field(id) + b"\n"
    if event is not None:
        head += b"event: " + _field(event) + b"\n"
    return head + b"data: " + escape(json) + b"\n\n"


def verbatim(line: bytes, *, id: bytes) -> bytes:
    """One event whose data arrives byte for byte. `line` holds no CR or LF, and its reader ends lines at nothing else."""
    return b"id: %b\ndata: %b\n\n" % (id, line)


def around(before: bytes, after: bytes) -> tuple[bytes, bytes]:
    """A frame of which the middle of the data is still missing: what to write before and after it.

    For hot paths: `before + middle + after` is `frame(...)` of the whole, if the middle is escaped already.
    """
    return b"data: " + escape(before), escape(after) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that readers ignore. Never followed by a blank line of its own: some clients take that for an empty event."""
    return b": " + _field(text) + b"\n"


def retry(ms: int) -> bytes:
    """How long a browser waits before it reconnects. Kills OpenAI clients; for native streams only."""
    return b"retry: %d\n" % ms


def at_boundary(written: bytes) -> bool:
    """Whether another frame may follow what was written last: a whole frame, a comment, or a retry time."""
    last_line = written[written.rfind(b"\n", 0, -1) + 1 :]
    return written.endswith(b"\n\n") or (written.endswith(b"\n") and last_line.startswith((b":", b"retry: ")))


DONE = b"data: [DONE]\n\n"
"""How OpenAI streams say that they are complete."""


def _field(text: str) -> bytes:
    return text.translate(_NOT_IN_FIELDS).encode("utf-8", "replace")
