"""`headgate keys`: API keys, made and ended directly in the database, because the first one needs no key.

Whoever can read the configuration and the data folder can do this, whether a server runs or not. Keys are of whichever tenant.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from pydantic import ValidationError

from gateway.settings import Settings, load
from gateway.settings_errors import ConfigError
from gateway.settings_layers import Override, parse_yaml
from gateway.wire.key_models import Key, issued, rotated, shown
from headgate.terminal import note, print_json, print_table
from orchestrator.clock import SystemClock
from orchestrator.embedded import reach
from orchestrator.errors import HeadgateError
from orchestrator.issuing import Issuing
from orchestrator.keys import mint
from orchestrator.limits.config import LimitsOf
from orchestrator.limits.quota import Allowance
from orchestrator.runs import EVERYDAY, Scope
from orchestrator.store.postgres import Postgres

_PATIENCE_S = 30.0
"""A database that was just started has its schema to set up."""


class DatabaseElsewhere(HeadgateError):
    """A gateway that runs apart has no database of its own. Make keys where the orchestrator runs, or through a server."""

    code = "database_elsewhere"


def run(arguments: Namespace) -> None:
    """Raises ConfigError, HeadgateError, OSError."""
    flags = [] if arguments.data is None else [Override(("data_dir",), arguments.data, "--data")]
    settings = load(arguments.config, flags=flags)
    asyncio.run(_run(settings, arguments))


async def _run(settings: Settings, arguments: Namespace) -> None:
    async with _issuing(settings) as issuing:
        await ACTIONS[arguments.action](issuing, arguments)
    if settings.auth.mode == "off" and arguments.action in ("create", "rotate"):
        note("auth.mode is off: servers with this configuration ask for no key.")


@asynccontextmanager
async def _issuing(settings: Settings) -> AsyncIterator[Issuing]:
    configured = settings.backends.postgres
    if not isinstance(configured, str):
        async with Postgres(configured.get_secret_value(), bound_s=_PATIENCE_S) as postgres:
            yield Issuing(postgres.keys, SystemClock())
        return
    if settings.role == "gateway":
        raise DatabaseElsewhere
    async with (
        reach.postgres(settings.data_dir, lambda _: None) as address,
        Postgres(address, bound_s=_PATIENCE_S) as postgres,
    ):
        yield Issuing(postgres.keys, SystemClock())


async def create(issuing: Issuing, arguments: Namespace) -> None:
    text, fingerprint = mint(secrets.token_bytes)
    key = await issuing.create(
        arguments.tenant,
        fingerprint,
        arguments.name,
        scopes=frozenset(map(Scope, arguments.scope)) if arguments.scope else EVERYDAY,
        expires_ms=None if arguments.expires is None else int((time.time() + arguments.expires) * 1000),
        limits=None if arguments.limits is None else _limits(arguments.limits),
    )
    if arguments.json:
        print_json(issued(key, text, _now_ms()).model_dump(mode="json"))
        return
    note(f"{key.id} of tenant {key.tenant} may {', '.join(sorted(key.scopes))}. It is shown this once:")
    print(text)


def _limits(text: str) -> Allowance:
    """Raises ConfigError."""
    try:
        return LimitsOf.model_validate(parse_yaml(text, "--limits")).allowance()
    except ValidationError as error:
        places = ((".".join(map(str, found["loc"])), found["msg"]) for found in error.errors())
        raise ConfigError([f"--limits: {f'{place}: ' if place else ''}{said}" for place, said in places]) from None


async def list_keys(issuing: Issuing, arguments: Namespace) -> None:
    keys = [shown(key, _now_ms()) for key in await issuing.list(arguments.tenant)]
    if arguments.json:
        for key in keys:
            print_json(key.model_dump(mode="json"))
    elif keys:
        print_table(("KEY", "BEGINS", "TENANT", "NAME", "STATUS", "LAST USED", "EXPIRES", "SCOPES"), [_row(key) for key in keys])
    else:
        note("no keys")


async def revoke(issuing: Issuing, arguments: Namespace) -> None:
    key = shown(await issuing.revoke(None, arguments.key_id), _now_ms())
    if arguments.json:
        print_json(key.model_dump(mode="json"))
    else:
        note(f"{key.id} ({key.name}, tenant {key.tenant}) is revoked. Running servers refuse it within 5 s.")


async def rotate(issuing: Issuing, arguments: Namespace) -> None:
    text, fingerprint = mint(secrets.token_bytes)
    done = await issuing.rotate(None, arguments.key_id, fingerprint, round(arguments.overlap * 1000))
    if arguments.json:
        print_json(rotated(done.key, text, done.replaced, _now_ms()).model_dump(mode="json"))
        return
    old = shown(done.replaced, _now_ms())
    ends = "is revoked" if old.status == "revoked" else f"is good until {old.expires_at}"
    note(f"{done.key.id} takes the place of {old.id}, which {ends}. It is shown this once:")
    print(text)


ACTIONS: Mapping[str, Callable[[Issuing, Namespace], Awaitable[None]]] = {
    "create": create,
    "list": list_keys,
    "revoke": revoke,
    "rotate": rotate,
}


def _row(key: Key) -> Sequence[str]:
    return (
        key.id,
        key.prefix,
        key.tenant,
        key.name,
        key.status,
        key.last_used_at or "never",
        key.expires_at or "never",
        " ".join(key.scopes),
    )


def _now_ms() -> float:
    return time.time() * 1000
