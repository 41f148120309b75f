"""What the tests of compatibility share: one Headgate, a second one beside it, a model server behind both, and clients.

Everything is started once per session and shape: as one process, and as a gateway and an orchestrator. `headgate` has the
settings of a default installation. `brisk` is a second process on the same backends, which makes it a replica; it asks for keys,
and its short waits and small limits can be seen without waiting. What would disturb other tests is `forgetful`'s, a third. `here`
and `there` are all doors of the first two.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from compat_tests.doors import DOORS, Door, Server
from compat_tests.model_server import ModelServer
from compat_tests.raw import Raw
from compat_tests.served import ALICE, MALLORY, SHAPES, UPSTREAM_SECRET, Shape, served
from compat_tests.shipped import shipped_models
from compat_tests.tenants import ADMINS
from orchestrator.embedded import Addresses

FRIENDLY_PAGE = "https://app.example.com"
"""The origin of a page that may open native streams of `brisk`."""

FEW_EVENTS = 50
"""How many `forgetful` keeps, more or less."""

SEMANTIC = {"upstream": "wire", "embedding_model": "bag-of-words", "threshold": 0.9, "wait_s": 5.0}

MODELS = ("demo", "demo-none", "wire", "wire-none")
"""Models that must be alike to clients: durable or not, scripted in the process or asked over a socket."""

TOOLS = ("weather", "login", "wait_for_ever")

CHECKED = ("checked", "checked-none")
"""Plans that ask before they answer, durable or not."""

HEDGE = {"after_s": 0.05, "max_share": 1}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "promise(*ids): the promises of compat_tests/manifest.py that this test proves")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "backends" in item.fixturenames:
            item.add_marker(pytest.mark.local)


@pytest.fixture(scope="session")
def model_server() -> Iterator[ModelServer]:
    with ModelServer().running() as server:
        yield server


@pytest.fixture(scope="session")
def deaf_port() -> Iterator[int]:
    """Whoever connects to it is refused: it is held, so that nobody else gets it, and not listened on."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        yield int(deaf.getsockname()[1])


@pytest.fixture(scope="session", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Shape:
    """Whether a Headgate is one process or two."""
    found: Shape = request.param
    return found


@pytest.fixture(scope="session")
def config(backends: Addresses, model_server: ModelServer, deaf_port: int, shape: Shape) -> dict[str, Any]:
    """The settings of a Headgate, which are the same in either shape. Whoever asks for them is tested in both."""
    return {
        "server": {"port": 0},
        "grpc": {"port": unused_port()},
        "backends": {"redis": backends.redis, "temporal": backends.temporal, "postgres": backends.postgres},
        "upstreams": _upstreams(model_server, deaf_port),
        "tools": {name: {"python": f"compat_tests.toolbox:{name}"} for name in TOOLS},
        "models": {
            "demo": _model("demo"),
            "demo-none": _model("demo", durability="none"),
            "wire": _model("wire"),
            "wire-none": _model("wire", durability="none"),
            "impatient": _model("impatient"),
            "patient": _model("patient"),
            "patient-none": _model("patient", durability="none"),
            "verbatim": _model("verbatim"),
            "old": _model("old"),
            "patient-with-503": _model("retrying", durability="none"),
            "dead": _model("dead"),
            "fallback": _model("dead", "wire"),
            "weary": _model("weary"),
            "hedged": {"plan": {"agent": {"upstream": ["wire", "retrying"], "route": {"hedge": HEDGE}}}},
            "again": _model("wire", on_cut="regenerate"),
            "onward": _model("demo", on_cut="continue"),
            "hasty": {"plan": {"agent": {"upstream": "demo", "timeout_s": 0.3}}},
            "cached": _model("demo", cache={"exact": True}),
            "cached-none": _model("demo", durability="none", cache={"exact": True}),
            "semantic": _model("demo", cache={"exact": True, "semantic": SEMANTIC}),
            "stays": _model("wire", on_disconnect="continue"),
            "equipped": _equipped("wire"),
            "equipped-none": _equipped("demo", durability="none"),
            "checked": _checked(),
            "checked-none": _checked(durability="none"),
            "remembers": _model("wire", memory={"max_tokens": 1000}),
            "team-equipped": _team_equipped(),
            **shipped_models(),
            "wire/*": _model("wire"),
            "*": _model("wire"),
        },
    }


@pytest.fixture(scope="session")
def headgate(config: dict[str, Any], shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Headgate as most people run it."""
    with served(config, tmp_path_factory.mktemp("headgate"), shape) as url:
        yield url


@pytest.fixture(scope="session")
def brisk_config(config: dict[str, Any]) -> dict[str, Any]:
    keys = [
        {"key": ALICE, "name": "alice", "tenant": "default"},
        {"key": MALLORY, "name": "mallory", "tenant": "other"},
        *({"key": key, "name": f"{tenant}-admin", "tenant": tenant, "scopes": ["admin"]} for tenant, key in ADMINS.items()),
    ]
    models = {name: model for name, model in config["models"].items() if name != "*"}
    return {
        **config,
        "server": {"port": 0, "max_body_bytes": "64KiB", "origins": [FRIENDLY_PAGE]},
        "grpc": {"port": unused_port()},
        "auth": {"mode": "keys", "keys": keys},
        "streams": {"hold_s": 0.2, "keepalive_s": 0.1},
        "models": models,
    }


@pytest.fixture(scope="session")
def brisk(brisk_config: dict[str, Any], headgate: str, shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a second Headgate on the same backends."""
    with served(brisk_config, tmp_path_factory.mktemp("brisk"), shape) as url:
        yield url


def _upstreams(server: ModelServer, deaf_port: int) -> dict[str, Any]:
    wire = {"kind": "openai", "base_url": server.base_url, "api_key": UPSTREAM_SECRET, "retries": 0, "breaker": None}
    dead = {**wire, "base_url": f"http://127.0.0.1:{deaf_port}/v1"}
    return {
        "demo": {"kind": "scripted", "rate": 100_000.0, "idle_timeout_s": 1.0},
        "patient": {"kind": "scripted", "rate": 100_000.0, "idle_timeout_s": 4.0},
        "wire": wire,
        "impatient": {**wire, "idle_timeout_s": 0.3, "max_line_bytes": 64 << 10, "max_answer_bytes": 256 << 10},
        "retrying": {**wire, "retries": 1},
        "old": {**wire, "developer_role": False},
        "verbatim": {**wire, "base_url": server.verbatim_url},
        "dead": dead,
        "weary": {**dead, "breaker": {"failures": 1, "open_s": 3600}},
    }


def unused_port() -> int:
    """Nobody answers there now."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def _model(*upstream: str, on_cut: str = "fail", **options: Any) -> dict[str, Any]:
    return {"plan": {"agent": {"upstream": list(upstream), "on_cut": on_cut}}, **options}


def _checked(**options: Any) -> dict[str, Any]:
    draft = {"name": "draft", "upstream": "demo", "input": '/script\nsay "Dear Ada"'}
    approval = {"name": "send", "action": "send: {{ outputs.draft }}", "reason": "It leaves the house."}
    sender = {"name": "sender", "upstream": "demo", "input": '/script\nsay "It was sent."', "answers": True}
    return {"plan": {"sequential": [{"agent": draft}, {"approval": approval}, {"agent": sender}]}, **options}


def _equipped(upstream: str, **options: Any) -> dict[str, Any]:
    return {"plan": {"agent": {"upstream": upstream, "tools": TOOLS, "max_turns": 4}}, **options}


def _team_equipped() -> dict[str, Any]:
    planner = {"agent": {"name": "planner", "upstream": "demo", "input": '/script say "Look, then speak."'}}
    writer = {"agent": {"name": "writer", "upstream": "demo", "answers": True, "tools": TOOLS, "max_turns": 4}}
    return {"plan": {"sequential": [planner, writer]}}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    """Each of the models that must be alike."""
    return str(request.param)


@pytest.fixture(params=("wire", "wire-none"))
def wire_model(request: pytest.FixtureRequest) -> str:
    """Each way to run a model that is asked over a socket, so that the model server can witness."""
    return str(request.param)


@pytest.fixture
def mark() -> str:
    """A comment that makes a script, and so its prompt, the only one of its kind."""
    return f"# {uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def raw(headgate: str) -> Raw:
    return Raw(headgate)


@pytest.fixture(scope="session")
def raw_brisk(brisk: str) -> Raw:
    return Raw(brisk, key=ALICE)


@pytest.fixture(scope="session")
def here(headgate: str, config: dict[str, Any]) -> Iterator[Server]:
    """All doors of `headgate`."""
    yield from _doors_of(headgate, config)


@pytest.fixture(scope="session")
def there(brisk: str, brisk_config: dict[str, Any]) -> Iterator[Server]:
    """All doors of `brisk`, a replica, for Alice."""
    yield from _doors_of(brisk, brisk_config, ALICE)


@pytest.fixture(scope="session")
def mallory(brisk: str, brisk_config: dict[str, Any]) -> Iterator[Server]:
    """All doors of `brisk`, for a stranger."""
    yield from _doors_of(brisk, brisk_config, MALLORY)


@pytest.fixture(scope="session")
def nobody(brisk: str, brisk_config: dict[str, Any]) -> Iterator[Server]:
    """All doors of `brisk`, for whoever has no key."""
    yield from _doors_of(brisk, brisk_config)


@pytest.fixture(scope="session")
def forgetful(config: dict[str, Any], headgate: str, shape: Shape, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """All doors of a third replica, which keeps few of a run's events, and whose sockets must answer pings soon."""
    less = {
        **config,
        "grpc": {"port": unused_port()},
        "log": {"max_events_per_run": FEW_EVENTS},
        "streams": {"ws_ping_s": 0.4},
    }
    with served(less, tmp_path_factory.mktemp("forgetful"), shape) as url:
        yield from _doors_of(url, less)


def _doors_of(url: str, config: dict[str, Any], key: str | None = None) -> Iterator[Server]:
    with closing(Server(url, config["grpc"]["port"], key)) as server:
        yield server


@pytest.fixture(params=DOORS)
def door(request: pytest.FixtureRequest) -> Door:
    """Each of the native doors."""
    return DOORS[str(request.param)]


@pytest.fixture(scope="session")
def client(headgate: str) -> Iterator[OpenAI]:
    """The official SDK. It does not retry, so that each failure shows."""
    with OpenAI(base_url=f"{headgate}/v1", api_key="none", max_retries=0, timeout=20.0) as client:
        yield client


@pytest.fixture(scope="session")
def brisk_client(brisk: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{brisk}/v1", api_key=ALICE, max_retries=0, timeout=20.0) as client:
        yield client


@pytest.fixture
async def async_client(headgate: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{headgate}/v1", api_key="none", max_retries=0, timeout=20.0) as client:
        yield client
