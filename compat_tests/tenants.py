"""Two tenants, each with a stored key that may do everything, and what one of them has."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from compat_tests.doors import DOORS, Event, Server
from compat_tests.raw import script
from compat_tests.watch import reading

ADMINS = {"acme": "key-of-acmes-admin", "globex": "key-of-globexs-admin"}
"""Configured keys, with which those that are used here are made."""

SECRET = "canary-of-acme"
"""In everything that Acme says or names."""


class Estate(NamedTuple):
    """What Acme has."""

    server: Server
    key: str
    key_id: str
    session: str
    done: str
    working: str
    waiting: str

    @property
    def runs(self) -> tuple[str, ...]:
        return self.done, self.working, self.waiting

    def logs(self) -> list[list[Event]]:
        return [self.server.log(run) for run in self.runs]


def stored_key(server: Server, tenant: str) -> tuple[str, str]:
    """The text of a new key of the tenant, and its id."""
    headers = {"Authorization": f"Bearer {ADMINS[tenant]}"}
    body = {"name": f"{SECRET} key" if tenant == "acme" else "globex key", "scopes": ["admin"]}
    answer = server.raw.send("POST", "/api/v1/auth/keys", body, headers)
    assert answer.status == 201, answer
    return answer.json["key"], answer.json["id"]


@contextmanager
def estate(server: Server, rpc_port: int) -> Iterator[Estate]:
    """A run that has ended, one that its upstream keeps waiting, and one that waits for a decision."""
    key, key_id = stored_key(server, "acme")
    session = f"{SECRET}-{uuid.uuid4().hex}"
    with closing(Server(server.url, rpc_port, key)) as acme:
        done = acme.submit("demo", script(f'say "{SECRET}"'), session_id=session, metadata={"of": SECRET})
        working = acme.submit("wire-none", script(f'say "{SECRET}"', "hang"), session_id=session)
        waiting = acme.submit("headgate-review", SECRET, session_id=session)
        for run, until in ((done, "STREAM_END"), (working, "LLM_PARTIAL"), (waiting, "APPROVAL_REQUESTED")):
            assert any(event["type"] == until for event in reading(DOORS["websocket"], acme, run))
        try:
            yield Estate(acme, key, key_id, session, done, working, waiting)
        finally:
            for run in (working, waiting):
                DOORS["sse"].ask(acme, run, "cancel", "the tests are over")
