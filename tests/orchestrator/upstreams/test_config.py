"""What the configuration may say of an upstream, and what is built from it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.metrics import NoMetrics
from orchestrator.upstreams.config import BreakerConfig, OpenAIConfig, ScriptedConfig, UpstreamConfig
from orchestrator.upstreams.factory import build, route
from orchestrator.upstreams.openai_http import OpenAIUpstream, upstream_session
from orchestrator.upstreams.scripted import ScriptedUpstream
from orchestrator.upstreams.upstream import Call, UpstreamResting, UpstreamUnreachable

CONFIG: TypeAdapter[UpstreamConfig] = TypeAdapter(UpstreamConfig)


def test_defaults() -> None:
    assert CONFIG.validate_python({"kind": "scripted"}) == ScriptedConfig(kind="scripted")
    config = CONFIG.validate_python({"kind": "openai", "base_url": "http://127.0.0.1:11434/v1/", "api_key": "secret"})
    assert isinstance(config, OpenAIConfig)
    assert (config.base_url, config.idle_timeout_s, config.total_timeout_s, config.connect_timeout_s, config.retries) == (
        "http://127.0.0.1:11434/v1",
        30,
        600,
        5,
        2,
    )
    assert (config.max_line_bytes, config.max_answer_bytes) == (1 << 20, 64 << 20)
    assert "secret" not in repr(config) + config.model_dump_json()


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        ({"kind": "other"}, (), "does not match any of the expected tags"),
        ({"kind": "openai"}, ("openai", "base_url"), "Field required"),
        ({"kind": "openai", "base_url": "ftp://x/"}, ("openai", "base_url"), "URL scheme should be 'http' or 'https'"),
        ({"kind": "openai", "base_url": "http://me:pw@x/"}, ("openai", "base_url"), "no query, fragment or credentials"),
        ({"kind": "openai", "base_url": "http://x/", "retires": 1}, ("openai", "retires"), "Extra inputs are not permitted"),
        ({"kind": "openai", "base_url": "http://x/", "idle_timeout_s": 0}, ("openai", "idle_timeout_s"), "greater than 0"),
        ({"kind": "scripted", "script": "jump"}, ("scripted", "script"), "script, line 1, column 1: unknown statement"),
    ],
)
def test_mistakes_are_told_with_their_place(value: Any, place: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        CONFIG.validate_python(value)
    error = raised.value.errors()[0]
    assert error["loc"] == place
    assert message in error["msg"]


async def test_upstreams_are_built_in_order() -> None:
    configs: dict[str, UpstreamConfig] = {
        "demo": ScriptedConfig(kind="scripted"),
        "local": OpenAIConfig(kind="openai", base_url="http://x/v1", retries=7),
    }
    async with upstream_session() as session:
        upstreams = build(configs, session)
        assert [(name, type(upstream), upstream.name) for name, upstream in upstreams.items()] == [
            ("demo", ScriptedUpstream, "demo"),
            ("local", OpenAIUpstream, "local"),
        ]


async def test_the_router_knows_retries_and_breakers() -> None:
    """A server that refuses connections is asked as often as its configuration says, and left alone after as many failures."""
    config = OpenAIConfig(kind="openai", base_url="http://127.0.0.1:1/v1", retries=1, breaker=BreakerConfig(failures=2))
    async with upstream_session() as session:
        router = route({"local": config}, build({"local": config}, session), NoMetrics())
        for error in (UpstreamUnreachable, UpstreamResting):
            with pytest.raises(error):
                async with router.ask(["local"], Call("task-1", "m", {"messages": []})):
                    pass
