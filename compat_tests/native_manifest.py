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
    "event.types": Promised("A type that is not in the list is refused, unless it begins with `X_`.", "native §2"),
    "event.unstored": Promised("`HEARTBEAT` and `PING` are accepted and never stored.", "native §2"),
    "event.all-types": Promised("Every type of the list passes through.", "native §2"),
    "native.errors": Promised(
        "What native routes refuse is `{error: {code, message, request_id}}` with the right status.", "native §5"
    ),
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
    "doors.gap": Promised("Trimmed events are announced: which are missing, and the first that is there.", "native §2-4, §6, P6"),
    "doors.expired": Promised("An expired run is answered from the archive; what that does not keep is a gap.", "design §5, P6"),
    "doors.lost": Promised("A log that is lost under its readers is told to them.", "native §4, §6, P4"),
    "doors.drain": Promised("A server that goes away says so, and its readers go on elsewhere.", "native §4, §6, P8, P19"),
    "doors.slow": Promised("A reader who does not read holds up nobody, and misses nothing.", "design §1, P15"),
    "doors.no-leak": Promised("Readers who are gone leave nothing behind.", "P24"),
    # Event stream
    "sse.headers": Promised("A stream says what it is and of which run, and is neither cached nor buffered.", "native §3"),
    "sse.opening": Promised("It opens at once, and says how long to wait before coming back.", "native §3"),
    "sse.frames": Promised("An event is an `id:`, an `event:` and one `data:` line.", "native §3"),
    "sse.names": Promised("Types have the names of the table, and none is called `error`.", "native §3"),
    "sse.raw-names": Promised("`names=raw` gives the types as names.", "native §3"),
    "sse.keepalive": Promised("Silence is filled with comments.", "native §3"),
    "sse.done": Promised("After `done` the server closes.", "native §3"),
    "sse.last-event-id": Promised("The header `Last-Event-ID` wins over the query; empty is the beginning.", "native §3"),
    # WebSocket
    "ws.messages": Promised("One JSON text message per event, the envelope.", "native §4"),
    "ws.position": Promised("Query and header give the position, as at the event stream.", "native §3, §4"),
    "ws.before-upgrade": Promised("What is refused is refused in plain HTTP, before the upgrade.", "native §4"),
    "ws.ended": Promised("The socket is closed with 1000 after `STREAM_END`.", "native §4"),
    "ws.ping": Promised("Silence is pinged, and a dead peer noticed.", "native §4"),
    "ws.origin": Promised("A page's origin is checked against the configured list.", "native §4"),
    "ws.approve": Promised("`approve` decides what a run waits for.", "native §4"),
    "ws.subscribe": Promised("`subscribe` and `unsubscribe`: one socket watches many runs.", "native §4"),
    "ws.answers": Promised("Every operation is answered `{op, ok, error}`, unknown ones too.", "native §4"),
    "ws.too-large": Promised("A message over 64 KiB closes with 1009.", "native §4"),
    "ws.codes": Promised("The code of a close says what to do next.", "native §4"),
    "ws.control": Promised("`cancel`, `pause`, `resume`, with a reason.", "native §4"),
    # REST
    "rest.submit": Promised("`POST /tasks`: a task with all documented fields, its id and its session.", "native §5"),
    "rest.idempotency": Promised("One `Idempotency-Key`, one task.", "native §5, P12"),
    "rest.submit-stream": Promised("`POST /tasks/stream`: 201 with the stream's address.", "native §5"),
    "rest.list": Promised("`GET /tasks`: by page, session and state, with the count of all.", "native §5"),
    "rest.task": Promised("`GET /tasks/{id}`: state, result or error, usage, times.", "native §5"),
    "rest.stream-redirect": Promised("`GET /tasks/{id}/stream`: 307 to the event stream, query escaped.", "native §5"),
    "rest.events": Promised("`GET /tasks/{id}/events`: keyset paging by `seq`.", "native §5"),
    "rest.timeline": Promised("`GET /tasks/{id}/timeline`: the Temporal history in words, read-only.", "native §5"),
    "rest.sessions": Promised("`/sessions`: listed, read, named, deleted.", "native §5"),
    "rest.tickets": Promised("`POST /stream/tickets`: a minute's entrance to streams and to nothing else.", "native §5"),
    "rest.health": Promised("`/health`, `/readiness` with each dependency, `/metrics`.", "native §5"),
    "rest.openapi": Promised("`/openapi.json` describes every route of the contract; `/docs` renders it.", "native §5"),
    "rest.pause": Promised("`POST /tasks/{id}/pause` and `/resume`: 202, or 409 in the wrong state.", "native §5"),
    "rest.cancel": Promised("`POST /tasks/{id}/cancel`: 202, twice as well; 409 says how the task has ended.", "native §5"),
    "rest.approvals": Promised("Approvals are listed, and decided once: 200, then 409.", "native §5"),
    "rest.control-state": Promised("`GET /tasks/{id}/control-state`: what was asked, by whom and why.", "native §5"),
    # gRPC
    "grpc.task-update": Promised("An update has the payload as an object and as exact bytes.", "native §6"),
    "grpc.numbers": Promised("Packages, fields and numbers are those of the contract.", "native §6"),
    "grpc.credentials": Promised("Credentials are metadata, on streams as well.", "native §6"),
    "grpc.codes": Promised("Refusals have the status codes of the contract.", "native §6"),
    "grpc.deadlines": Promised("Deadlines and cancellation are honoured.", "native §6"),
    "grpc.too-large": Promised("A message over the limit is RESOURCE_EXHAUSTED, and nothing else suffers.", "native §6"),
    "grpc.submit": Promised("`SubmitTask`.", "native §6"),
    "grpc.status": Promised("`GetTaskStatus`, with details and without.", "native §6"),
    "grpc.list": Promised("`ListTasks`.", "native §6"),
    "grpc.approvals": Promised("`GetPendingApprovals`, `ApproveTask`.", "native §6"),
    "grpc.publish": Promised("`PublishEvents`: positions come back, and a repetition gets the same.", "native §6"),
    "grpc.health": Promised("Health checking is on.", "native §6"),
    "grpc.control": Promised("`CancelTask`, `PauseTask`, `ResumeTask`, `GetControlState`.", "native §6"),
    "grpc.reflection": Promised("Reflection is on: who has no `.proto` file can call.", "native §6"),
}
