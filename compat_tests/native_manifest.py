"""What the native doors promise, for `manifest.py`: what is the same at all of them, then each row of the contract by itself."""

from __future__ import annotations

from collections.abc import Mapping

from compat_tests.promised import Promised

NATIVE: Mapping[str, Promised] = {
    # Events
    "event.envelope": Promised(
        "An event has the same fields at every door; `seq` has no holes and positions only grow.", "native §1"
    ),
    "event.order": Promised("A plain run says what it does, in this order.", "native §2"),
    "event.facts": Promised("Outputs and endings carry what the contract lists.", "native §2"),
    "event.one-ending": Promised("Exactly one ending, then `STREAM_END`, whatever happened to the run.", "native §2, P13"),
    "event.timeout": Promised("A time-out is a failure whose code says so.", "native §2"),
    "event.private": Promised("No event has credentials, the system prompt or the context.", "native §1"),
    # All doors
    "doors.same-events": Promised("Every door of every replica shows the same events.", "native §1, P5"),
    "doors.chat-truth": Promised("The chat door tells the same: text, tool calls, usage, finish reason, order.", "P5"),
    "doors.resume": Promised("A reader goes on after any event, by `stream_id` or by `seq`.", "design §1, P5"),
    "doors.replica": Promised("Any replica serves any run.", "P8"),
    "doors.across": Promised("A stream begun at one door is continued at another.", "P5"),
    "doors.live": Promised("Replay is followed by what happens live, with no hole and no repeat.", "P3"),
    "doors.ended": Promised("A finished run from its last position ends at once and never idles.", "native §3"),
    "doors.filter": Promised("A filter hides neither an ending nor a position.", "native §3, design §1"),
    "doors.unknown-run": Promised("An unknown run is refused at once.", "native §3, §4, §6"),
    "doors.foreign-run": Promised("Another tenant's run looks like a missing one, to read and to control.", "design §1"),
    "doors.no-run": Promised("A stream without a run is a bad request.", "native §3, §4, §6"),
    "doors.bad-position": Promised("What cannot be a position is refused.", "native §3, design §1"),
    "doors.gone-position": Promised(
        "A position that names no event of the run is a gap, and what there is follows.", "design §1, P4"
    ),
    "doors.bad-types": Promised("A filter with a name that no event has is refused.", "native §3"),
    "doors.key": Promised("No door opens without a key.", "native §6, design §1"),
    "doors.reader-leaves": Promised("A native reader's leaving changes nothing.", "§1 [18]"),
    "doors.at-once": Promised(
        "A run of the openai SDK is followed live by bytes, a socket, gRPC and the command at once.", "P5, P13"
    ),
    "doors.control": Promised("What is asked of a run at one door is seen at all others.", "native §4, §5, §6"),
    # Event stream
    # WebSocket
    "ws.control": Promised("`cancel`, `pause`, `resume`, with a reason.", "native §4"),
    # REST
    "rest.pause": Promised("`POST /tasks/{id}/pause` and `/resume`: 202, or 409 in the wrong state.", "native §5"),
    "rest.cancel": Promised("`POST /tasks/{id}/cancel`: 202, twice as well; 409 says how the task has ended.", "native §5"),
    "rest.control-state": Promised("`GET /tasks/{id}/control-state`: what was asked, by whom and why.", "native §5"),
    # gRPC
    "grpc.control": Promised("`CancelTask`, `PauseTask`, `ResumeTask`, `GetControlState`.", "native §6"),
    "grpc.reflection": Promised("Reflection is on: who has no `.proto` file can call.", "native §6"),
}
