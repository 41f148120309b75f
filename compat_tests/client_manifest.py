"""What the clients of the native API are promised: Headgate's own, its command, and shannon-sdk."""

from __future__ import annotations

from collections.abc import Mapping

from compat_tests.promised import Promised

CLIENTS: Mapping[str, Promised] = {
    "client.submit": Promised("headgate: a task is submitted, watched to its end, and its result read.", "native §7"),
    "client.stream": Promised("headgate: text and payloads arrive intact, alike over both transports.", "native §7"),
    "client.resume": Promised("headgate: a stream goes on after any position, on any replica.", "native §7, P5, P8"),
    "client.restart": Promised("headgate: a stream outlives the server that it was read from.", "native §7"),
    "client.filter": Promised("headgate: a filter hides what was not asked for, and no ending.", "native §3, §7"),
    "client.leaving": Promised("headgate: leaving a stream leaves its task alone.", "native §7"),
    "client.control": Promised("headgate: tasks are paused, resumed and cancelled, and say so.", "native §5, §7"),
    "client.approve": Promised("headgate: approvals are listed and decided, once.", "native §5, §7"),
    "client.lists": Promised("headgate: tasks, events, the timeline and sessions can be read.", "native §5, §7"),
    "client.errors": Promised("headgate: what is refused is an error of its own class, at once.", "native §7"),
    "client.sync": Promised("headgate: the client for ordinary programs does the same.", "native §7"),
    "command.watches": Promised("headgate: the command submits, watches, lists and controls tasks.", "native §7"),
    "shannon.submit": Promised("shannon-sdk: submit_task, and wait.", "native §7"),
    "shannon.submit-and-stream": Promised("shannon-sdk: submit_and_stream gives an address that can be read.", "native §7"),
    "shannon.status": Promised("shannon-sdk: get_status, of tasks that go on, completed and failed.", "native §7"),
    "shannon.list": Promised("shannon-sdk: list_tasks, filtered and page by page.", "native §7"),
    "shannon.stream": Promised("shannon-sdk: stream, filtered and resumed too, ends with the task.", "native §7"),
    "shannon.stream-ws": Promised("shannon-sdk: stream_ws, filtered and resumed too.", "native §7"),
    "shannon.events": Promised("shannon-sdk: get_task_events and get_task_timeline.", "native §7"),
    "shannon.cancel": Promised("shannon-sdk: cancel.", "native §7"),
    "shannon.pause": Promised("shannon-sdk: pause_task, resume_task and get_control_state.", "native §7"),
    "shannon.approve": Promised("shannon-sdk: approve.", "native §7"),
    "shannon.chat": Promised("shannon-sdk: chat completions, whole and streamed, in a session.", "native §7"),
    "shannon.models": Promised("shannon-sdk: models.", "native §7"),
    "shannon.sessions": Promised("shannon-sdk: sessions, their history and events, title and deletion.", "native §7"),
    "shannon.keys": Promised("shannon-sdk: both ways to send a key; a wrong one is its AuthenticationError.", "native §7"),
    "shannon.errors": Promised("shannon-sdk: what is refused is the error that it documents.", "native §7"),
    "shannon.health": Promised("shannon-sdk: health, readiness and the description of the API.", "native §7"),
    "shannon.sync": Promised("shannon-sdk: its client for ordinary programs does the same.", "native §7"),
}
