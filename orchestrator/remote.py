"""The engine of an orchestrator that runs apart: `engine.Engine` over its internal HTTP app.

Each method is the protocol's own, sent as a message (`orchestrator.http.calls`); errors come back as the exceptions that they
were. Subscriptions outlive the connections that feed them (`orchestrator.following`).
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar, cast

import aiohttp
import msgspec

from orchestrator.catalog import Resolved
from orchestrator.engine import Dependency, Engine, Submission, Subscription
from orchestrator.errors import RunNotFound, Unavailable
from orchestrator.following import Following
from orchestrator.http import feed
from orchestrator.http.calls import CALLS, Call
from orchestrator.peers import OrchestratorAway, Peers, Refused
from orchestrator.runs import Principal, Run, is_run_id
from orchestrator.streamlog.log import BEGINNING, Position

OUTAGE_S = 60.0
SILENCE_S = 15.0
"""A feed that is silent for so long is dead: three of its keepalives are missing."""

Method = TypeVar("Method", bound=Callable[..., Any])


def _remote(method: Method) -> Method:
    call = CALLS[method.__name__]

    @functools.wraps(method)
    async def ask(self: RemoteEngine, *args: Any, **kwargs: Any) -> Any:
        return await self._perform(call, call.repeatable, *args, **kwargs)

    return cast(Method, ask)


class RemoteEngine(Engine):
    """`resolve` is answered here. `outage_s`: how long a subscription waits for an orchestrator to come back."""

    def __init__(
        self,
        peers: Peers,
        resolve: Callable[[str], Resolved],
        *,
        outage_s: float = OUTAGE_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._peers = peers
        self._resolve = resolve
        self._outage_s = outage_s
        self._silence_s = silence_s

    get = _remote(Engine.get)
    details = _remote(Engine.details)
    list = _remote(Engine.list)
    cancel = _remote(Engine.cancel)
    pause = _remote(Engine.pause)
    resume = _remote(Engine.resume)
    control_state = _remote(Engine.control_state)
    history = _remote(Engine.history)
    timeline = _remote(Engine.timeline)
    publish = _remote(Engine.publish)
    approvals = _remote(Engine.approvals)
    decide = _remote(Engine.decide)
    sessions = _remote(Engine.sessions)
    session = _remote(Engine.session)
    title_session = _remote(Engine.title_session)
    delete_session = _remote(Engine.delete_session)
    usage = _remote(Engine.usage)
    create_key = _remote(Engine.create_key)
    list_keys = _remote(Engine.list_keys)
    revoke_key = _remote(Engine.revoke_key)
    rotate_key = _remote(Engine.rotate_key)
    find_keys = _remote(Engine.find_keys)
    key_states = _remote(Engine.key_states)
    touch_keys = _remote(Engine.touch_keys)
    shared_secret = _remote(Engine.shared_secret)
    models = _remote(Engine.models)

    async def submit(self, principal: Principal, submission: Submission) -> Run:
        """With an idempotency key, submitting twice is submitting once, so a lost answer can be asked for again."""
        key = submission.idempotency
        run: Run = await self._perform(CALLS["submit"], key is not None and not key.anew, principal, submission)
        return run

    async def dependencies(self) -> Mapping[Literal["redis", "temporal", "postgres"], Dependency]:
        """Of backends that nobody can be asked about, nothing good is known."""
        try:
            answer: Mapping[Literal["redis", "temporal", "postgres"], Dependency] = await self._perform(
                CALLS["dependencies"], True
            )
        except Unavailable as error:
            unknown, spare = Dependency(False, True, error.message), Dependency(False, False, error.message)
            return {"redis": unknown, "temporal": spare, "postgres": spare}
        return answer

    def resolve(self, model: str) -> Resolved:
        return self._resolve(model)

    @asynccontextmanager
    async def subscribe(
        self, principal: Principal, run_id: str, position: Position = BEGINNING, *, answers: bool = False
    ) -> AsyncIterator[Subscription]:
        if not is_run_id(run_id):
            raise RunNotFound  # what stands in a path must be nothing but a name

        async def connect(after: Position) -> aiohttp.ClientResponse:
            try:
                return await self._peers.stream(feed.target(run_id, after, answers=answers), principal, silence_s=self._silence_s)
            except Refused as refused:
                raise refused.error() from None

        response = await connect(position)
        following = Following(
            connect,
            response,
            position,
            outage_s=self._outage_s,
            clock=time.monotonic,
            spread=lambda seconds: random.uniform(seconds / 2, seconds),
        )
        try:
            yield following
        finally:
            await following.close()

    async def _perform(self, call: Call, repeatable: bool, *args: Any, **kwargs: Any) -> Any:
        """Make a call with a method's own arguments. Raises what it raises; OrchestratorAway."""
        principal, message = call.ask(*args, **kwargs)
        answer = await self._peers.call(call.path, principal, message, repeatable=repeatable)
        try:
            return call.result(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise OrchestratorAway("The orchestrator speaks another version of this protocol.") from error
