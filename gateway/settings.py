"""The configuration: its shape, its defaults, and how it is loaded. The only place that reads any.

Precedence, strongest first: flags, `HEADGATE_…` environment variables, the file, the defaults below. The commented
`config.yaml` in the repository is these defaults written out; a test keeps the two equal. Unknown keys and references to
things that do not exist are refused with their path. Secrets have a type that does not print.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    Tag,
    ValidationError,
    model_validator,
)

from gateway.observe.logs import Format
from gateway.settings_auth import Auth
from gateway.settings_errors import ConfigError, Inconsistent, Problem, did_you_mean, explain
from gateway.settings_layers import Override, from_environment, interpolate, overlay, parse_yaml, source_of
from gateway.settings_section import Section, is_loopback
from orchestrator.cache.config import CacheConfig
from orchestrator.catalog import Catalog, ModelEntry
from orchestrator.errors import ModelNotFound
from orchestrator.limits.config import Limits
from orchestrator.plans.children import ChildLoop
from orchestrator.plans.plan import Plan
from orchestrator.plans.steps import Child
from orchestrator.tools import config as tool_config
from orchestrator.tools.config import ToolConfig, ToolName
from orchestrator.upstreams.config import OpenAIConfig, UpstreamConfig

KIB, MIB = 1024, 1024 * 1024

DEMO: Mapping[str, Any] = parse_yaml(files("gateway").joinpath("demo.yaml").read_text("utf-8"), "demo.yaml")
"""What is served when nobody names an upstream or a model."""


def _origin(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s,]+", text):
        raise ValueError("should be '*', or scheme and host as in https://app.example.com: browsers send no path")
    return text


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Tls(Section):
    """A certificate of one's own: HTTPS without a proxy."""

    cert: Path = Field(description="PEM, the whole chain.")
    key: Path = Field(description="PEM, not encrypted.")
    min_version: Literal["1.2", "1.3"] = Field(default="1.2", description="The oldest version of TLS that is spoken.")


class Server(Section):
    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on; 0.0.0.0 is every IPv4 address.")
    port: int = Field(default=8080, ge=0, le=65535, description="0: a free one.")
    max_body_bytes: ByteSize = Field(default=ByteSize(32 * MIB), gt=0, description="A larger request body is a 413.")
    max_header_bytes: ByteSize = Field(default=ByteSize(64 * KIB), gt=0, description="Largest single header field of a request.")
    header_timeout_s: PositiveFloat = Field(
        default=15.0, description="A client that takes longer to send a request's headers is disconnected."
    )
    max_connections: PositiveInt = Field(default=20_000, description="Per process; one more is answered 503 and closed.")
    drain_notice_s: float = Field(
        default=0.0,
        ge=0,
        description="After SIGTERM: how long all is still answered while /readiness says 503, for load balancers to notice.",
    )
    drain_s: float = Field(
        default=20.0, ge=0, description="After SIGTERM: how long open streams may go on before they are closed."
    )
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(), description="Web pages that may use this server, besides its own; `*` is all of them."
    )
    trusted_proxies: tuple[Network, ...] = Field(
        default=(), description="Networks whose X-Forwarded-For, -Proto and -Host are believed, for logs and URLs only."
    )
    tls: Tls | None = Field(default=None, description="None: plain HTTP.")
    workers: PositiveInt = Field(default=1, description="Processes that share the port.")


def _secret(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None and len(secret.get_secret_value()) < 16:
        raise ValueError("should have 16 characters or more")
    return secret


class Orchestrator(Section):
    """Between a gateway and an orchestrator that run apart: `role` is `gateway` or `orchestrator`. Both get the same file."""

    urls: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=r"^https?://[^/\s?#]+/?$")], ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Field(min_length=1, description="Where a gateway finds orchestrators, one or more."),
    ] = ("http://127.0.0.1:8090",)
    secret: Annotated[SecretStr | None, AfterValidator(_secret)] = Field(
        default=None, description="What gateways sign their requests with. May be left out where nobody else can connect."
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="Address an orchestrator listens on, for gateways only.")
    port: int = Field(default=8090, ge=0, le=65535, description="0: a free one.")
    outage_s: PositiveFloat = Field(
        default=60.0, description="How long open streams wait for an orchestrator to come back before they end with an error."
    )


class Grpc(Section):
    """The gRPC door."""

    enabled: bool = True
    host: str | None = Field(default=None, min_length=1, description="None: server.host.")
    port: int | None = Field(
        default=None, ge=0, le=65535, description="None: 50052, or a free one if that is taken. 0: a free one."
    )
    max_message_bytes: ByteSize = Field(
        default=ByteSize(4 * MIB), gt=0, description="A call that sends a larger message ends as RESOURCE_EXHAUSTED."
    )
    max_calls: PositiveInt = Field(default=10_000, description="Calls at once; one more ends as RESOURCE_EXHAUSTED.")


def _host_and_port(text: str) -> str:
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", text):
        raise ValueError("should be 'embedded' or host:port")
    return text


class TemporalAddress(Section):
    """A Temporal server somewhere else."""

    address: Annotated[str, AfterValidator(_host_and_port)] = Field(description="host:port")
    namespace: str = "default"
    tls: bool = False
    api_key: SecretStr | None = None


def _spelled_out(value: object) -> object:
    return {"address": value} if isinstance(value, str) and value != "embedded" else value


def _scheme(*allowed: str) -> AfterValidator:
    def check(value: SecretStr | str) -> SecretStr | str:
        if isinstance(value, SecretStr) and not value.get_secret_value().startswith(allowed):
            raise ValueError(f"should be 'embedded' or an address that begins with {' or '.join(allowed)}")
        return value

    return AfterValidator(check)


def _embedded_or_else(value: object) -> str:
    return "embedded" if value == "embedded" else "address"


Embedded = Annotated[Literal["embedded"], Tag("embedded")]
Address = Annotated[Embedded | Annotated[SecretStr, Tag("address")], Discriminator(_embedded_or_else)]
"""`embedded`, or an address, which may hold a password and so does not print."""


class Backends(Section):
    """`embedded` starts the real thing as a child process with its data under `data_dir`."""

    redis: Annotated[Address, _scheme("redis://", "rediss://", "unix://")] = "embedded"
    temporal: Annotated[
        Embedded | Annotated[TemporalAddress, Tag("address")],
        Discriminator(_embedded_or_else),
        BeforeValidator(_spelled_out),
    ] = "embedded"
    postgres: Annotated[Address, _scheme("postgresql://", "postgres://")] = "embedded"


class LogSettings(Section):
    """The event log: how long it keeps what, and how much memory it may take here."""

    retention_hours: PositiveFloat = Field(default=24.0, description="A run's events expire so long after its last one.")
    max_events_per_run: PositiveInt = Field(
        default=500_000, description="Beyond it the oldest go; their readers are told of a gap."
    )
    ring_bytes: ByteSize = Field(
        default=ByteSize(MIB), gt=0, description="Recent events kept in memory per run that has readers."
    )
    writer_buffer_bytes: ByteSize = Field(
        default=ByteSize(MIB), gt=0, description="Events a run may have waiting for Redis; at the bound its upstream is not read."
    )


class Streams(Section):
    keepalive_s: PositiveFloat = Field(default=10.0, description="Silence after which a comment is sent.")
    hold_s: float = Field(
        default=2.0,
        ge=0,
        description="How long headers wait for the first output, so that an early failure is a real HTTP status.",
    )
    stall_timeout_s: PositiveFloat = Field(default=60.0, description="A client that takes no bytes for so long is disconnected.")
    ws_ping_s: PositiveFloat = Field(
        default=20.0,
        description="Silence after which a WebSocket is pinged; it is dead if nothing comes back, and nothing "
        "is taken of what is on its way to it, in half that time.",
    )
    ws_max_message_bytes: ByteSize = Field(
        default=ByteSize(64 * KIB), gt=0, description="A longer message of a WebSocket client closes its socket with 1009."
    )
    ws_messages_per_s: PositiveFloat = Field(
        default=50.0, description="A WebSocket client that says more, pings included, is listened to more slowly."
    )
    ws_max_runs: PositiveInt = Field(default=100, description="Runs that one WebSocket may show at a time.")


class Runs(Section):
    heartbeat_s: PositiveFloat = Field(
        default=5.0, description="A worker that is silent for so long has lost its run to the next attempt."
    )
    janitor_s: PositiveFloat = Field(default=5.0, description="How often runs without an ending or a start are looked for.")
    sdk_retries: bool = Field(
        default=False,
        description="Automatic retries of the official SDKs, which say so in `x-stainless-retry-count`, get the run of the first "
        "try, as if they had an Idempotency-Key.",
    )


class Tasks(Section):
    """Which model a task of the native routes gets that names none."""

    default_model: str | None = Field(default=None, description="None: the first of `models` with an exact name.")
    tiers: dict[Literal["small", "medium", "large"], str] = Field(
        default={}, description="The model behind a task's `model_tier`; a tier that is not here gets the default."
    )


class Logging(Section):
    """What the process says about itself on standard error. Prompts and answers are not in it."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Format = Field(default="auto", description="text, json (one object per line), or auto: text on a terminal.")


class Settings(Section):
    """Everything that can be configured."""

    role: Literal["all", "gateway", "orchestrator"] = Field(default="all", description="What this process is.")
    server: Server = Server()
    orchestrator: Orchestrator = Orchestrator()
    grpc: Grpc = Grpc()
    data_dir: Path = Field(default=Path(".headgate"), description="Where embedded backends keep their data.")
    auth: Auth = Auth()
    backends: Backends = Backends()
    upstreams: dict[str, UpstreamConfig] = Field(default={})
    models: dict[str, ModelEntry] = Field(min_length=1)
    tools: dict[ToolName, ToolConfig] = Field(default={}, description="What agents may call, each by the name that they list.")
    log: LogSettings = LogSettings()
    streams: Streams = Streams()
    runs: Runs = Runs()
    tasks: Tasks = Tasks()
    limits: Limits = Limits()
    logging: Logging = Logging()

    @property
    def default_model(self) -> str | None:
        """What a task runs that says nothing of models. None where every entry is a pattern and none is configured."""
        exact = (name for name in self.models if not name.endswith("*"))
        return self.tasks.default_model or next(exact, None)

    @model_validator(mode="before")
    @classmethod
    def _demo(cls, data: Any) -> Any:
        """Whoever names neither upstreams nor models gets the demo."""
        if isinstance(data, dict) and not DEMO.keys() & data.keys():
            return {**DEMO, **data}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [
            *_access_problems(self),
            *_role_problems(self),
            *_model_problems(self),
            *_tool_problems(self),
            *_task_problems(self),
        ]:
            raise Inconsistent(problems)
        return self


def _access_problems(settings: Settings) -> Iterator[Problem]:
    auth = settings.auth
    if auth.mode == "off" and (auth.keys or auth.jwt is not None):
        given = "auth.keys has some" if auth.keys else "auth.jwt is set"
        yield ("auth", "mode"), f"is 'off' although {given}; set it to keys, or take that out"
    elif auth.mode == "off":
        doors = {"server.host": settings.server.host, "grpc.host": settings.grpc.host}
        hosts = {} if settings.role == "orchestrator" else doors  # whose only door asks for signatures
        if reachable := [(name, host) for name, host in hosts.items() if host is not None and not is_loopback(host)]:
            name, host = reachable[0]
            yield (
                ("auth", "mode"),
                f"'off' is refused while {name} is {host}, which other machines can reach; "
                f"set auth.mode to keys, or set {name} to 127.0.0.1",
            )
    for field in ("key", "name"):
        seen = set()
        for number, key in enumerate(auth.keys):
            if (value := getattr(key, field)) in seen:
                yield ("auth", "keys", str(number), field), "is that of another key as well"
            seen.add(value)


def _role_problems(settings: Settings) -> Iterator[Problem]:
    """A secret may be left out only where everybody who can connect could do the same things at the front door."""
    between, path = settings.orchestrator, ("orchestrator", "secret")
    if settings.role == "all" or between.secret is not None:
        return
    hosts = [urlsplit(url).hostname or "" for url in between.urls] if settings.role == "gateway" else [between.host]
    if settings.auth.mode != "off":
        yield path, f"is needed by role {settings.role} with auth.mode {settings.auth.mode}; the same on both sides"
    elif reachable := [host for host in hosts if not is_loopback(host)]:
        yield path, f"is needed by role {settings.role} while {reachable[0]} is not this machine; the same on both sides"


def _model_problems(settings: Settings) -> Iterator[Problem]:
    upstreams, catalog = settings.upstreams, Catalog(settings.models)
    for name, entry in settings.models.items():
        if "*" in name and name != "*" and not (name.endswith("/*") and name.count("*") == 1):
            yield ("models", name), "is neither an exact name, nor prefix/*, nor *"
        yield from _cache_problems(settings, ("models", name, "cache"), entry.cache)
        if entry.plan is None:
            continue
        for path, text in plan_problems(entry.plan, upstreams):
            yield ("models", name, "plan", *path), text
        for node in entry.plan.root.walk():
            if isinstance(node.spec, Child) and node.spec.model is not None:
                path = ("models", name, "plan", *node.path, "model")
                if not _served(catalog, node.spec.model):
                    yield path, f"there is no model '{node.spec.model}'{did_you_mean(node.spec.model, settings.models)}"
        try:
            catalog.whole(entry.plan, name)
        except ChildLoop as loop:
            yield ("models", name, "plan"), f"is a step of itself: {loop}"
        except ModelNotFound:
            continue  # told above


def plan_problems(plan: Plan, upstreams: Mapping[str, UpstreamConfig]) -> Iterator[Problem]:
    """What is wrong with a plan where there are these upstreams, each with its path in the plan."""
    yield from plan.mistakes()
    for node, agent in plan.agents():
        for upstream in agent.upstream:
            if upstream not in upstreams:
                weighed = (upstream,) if isinstance(agent.upstream, dict) else ()
                yield (*node.path, "upstream", *weighed), f"there is no upstream '{upstream}'{did_you_mean(upstream, upstreams)}"
        known = [upstream for upstream in agent.upstream if upstream in upstreams]
        if agent.on_cut == "continue" and known and not any(_continues(upstreams[upstream]) for upstream in known):
            where = " or ".join(f"upstreams.{upstream}" for upstream in known)
            yield (*node.path, "on_cut"), f"'continue' needs `continues: true` at {where}; or choose 'regenerate'"


def _tool_problems(settings: Settings) -> Iterator[Problem]:
    tools = settings.tools
    for name, entry in settings.models.items():
        for node, agent in entry.plan.agents() if entry.plan is not None else ():
            for number, tool in enumerate(agent.tools):
                if not tool_config.known(tool, tools):
                    path = ("models", name, "plan", *node.path, "tools", str(number))
                    yield path, f"there is no tool '{tool}' in `tools`{did_you_mean(tool, tools)}"


def _cache_problems(settings: Settings, path: tuple[str, ...], cache: CacheConfig | None) -> Iterator[Problem]:
    if cache is None:
        return
    semantic, retention_s = cache.semantic, settings.log.retention_hours * 3600
    for at, ttl_s in ((path, cache.ttl_s), ((*path, "semantic"), 0.0 if semantic is None else semantic.ttl_s)):
        if ttl_s > retention_s:
            why = f"is longer than the {retention_s:g} s of log.retention_hours, and the log is what is given again"
            yield (*at, "ttl_s"), why
    if semantic is None:
        return
    upstream = settings.upstreams.get(semantic.upstream)
    if upstream is None:
        why = f"there is no upstream '{semantic.upstream}'{did_you_mean(semantic.upstream, settings.upstreams)}"
        yield (*path, "semantic", "upstream"), why
    elif not isinstance(upstream, OpenAIConfig):
        yield (*path, "semantic", "upstream"), "needs an upstream of kind 'openai': a scripted one does not know what words mean"


def _task_problems(settings: Settings) -> Iterator[Problem]:
    catalog, tasks = Catalog(settings.models), settings.tasks
    named = {("default_model",): tasks.default_model} | {("tiers", tier): name for tier, name in tasks.tiers.items()}
    for path, name in named.items():
        if name is not None and not _served(catalog, name):
            yield ("tasks", *path), f"there is no model '{name}'{did_you_mean(name, settings.models)}"


def _served(catalog: Catalog, name: str) -> bool:
    try:
        catalog.resolve(name)
    except ModelNotFound:
        return False
    return True


def _continues(upstream: UpstreamConfig) -> bool:
    return upstream.continues if isinstance(upstream, OpenAIConfig) else True


def load(file: Path | None = None, *, flags: Sequence[Override] = (), environ: Mapping[str, str] | None = None) -> Settings:
    """The settings that the file, the environment and the flags make together. Raises ConfigError."""
    environ = os.environ if environ is None else environ
    origin = "configuration" if file is None else str(file)
    data: dict[str, Any] = dict(DEMO)
    if file is not None:
        try:
            data = interpolate(parse_yaml(file.read_text("utf-8"), origin), environ, origin)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{origin}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    overrides = [*from_environment(environ, Settings.model_fields), *flags]
    data = overlay(data, overrides)
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        schema = Settings.model_json_schema()
        raise ConfigError(explain(error, data, schema, lambda path: source_of(path, origin, overrides))) from None
