"""An engine behind an orchestrator's internal app, and a gateway's engine in front of it, over real sockets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from itertools import count
from typing import Any

from gateway.app import new_request_id, orchestrator_app
from gateway.observe.metrics import GatewayMetrics
from gateway.settings import Settings
from gateway.transports.drain import Drain
from gateway.transports.http_server import listening
from orchestrator.catalog import Catalog
from orchestrator.engine import Engine
from orchestrator.peers import Peers, peer_session
from orchestrator.remote import RemoteEngine
from orchestrator.signing import Signer
from tests.orchestrator.engines import MODELS

SECRET = "a secret of sixteen or more"

Shape = Callable[[Engine], AbstractAsyncContextManager[Engine]]
"""How an engine is reached: as it is, or from another process."""


def settings(secret: str | None = SECRET, **sections: Any) -> Settings:
    between = {"secret": secret, "port": 0}
    demo = {"upstreams": {"demo": {"kind": "scripted"}}, "models": MODELS}
    return Settings.model_validate({"role": "orchestrator", "orchestrator": between, **demo, **sections})


class Internal:
    """A running internal app. `url` stays the same when another one is started on its `port`."""

    def __init__(self, url: str, drain: Drain) -> None:
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.drain = drain


@asynccontextmanager
async def internal(engine: Engine, *, port: int = 0, secret: str | None = SECRET, **sections: Any) -> AsyncIterator[Internal]:
    configured = settings(secret, **sections)
    async with (
        orchestrator_app(configured, engine, GatewayMetrics()) as (app, drain),
        listening(app, host="127.0.0.1", port=port, new_request_id=new_request_id) as url,
    ):
        yield Internal(url, drain)


@asynccontextmanager
async def peers(urls: Sequence[str], *, secret: str = SECRET, clock: Callable[[], float] = time.time) -> AsyncIterator[Peers]:
    numbers = count(1)
    async with peer_session() as session:
        yield Peers(urls, Signer(secret, clock), session, time.monotonic, lambda: f"req-{next(numbers)}")


@asynccontextmanager
async def remote(*urls: str, outage_s: float = 10.0, **options: Any) -> AsyncIterator[RemoteEngine]:
    async with peers(urls, **options) as known:
        yield RemoteEngine(known, Catalog(settings().models).resolve, outage_s=outage_s)


@asynccontextmanager
async def apart(engine: Engine) -> AsyncIterator[Engine]:
    async with internal(engine) as there, remote(there.url) as here:
        yield here


SHAPES: dict[str, Shape] = {"local": nullcontext, "remote": apart}
