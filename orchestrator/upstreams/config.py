"""What `upstreams.<name>` of the configuration says. Validation only; `factory.py` builds the upstreams from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    TypeAdapter,
)

from orchestrator.errors import InvalidRequest
from orchestrator.upstreams.script import parse

_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)

MIB = 1 << 20


def _base_url(value: str) -> str:
    """Checked like a URL but kept as written: a URL type would add or move slashes."""
    url = _HTTP_URL.validate_python(value)
    if url.query or url.fragment or url.username:
        raise ValueError("base_url must have no query, fragment or credentials")
    return value.rstrip("/")


def _script(value: str) -> str:
    try:
        parse(value)
    except InvalidRequest as error:
        raise ValueError(error.message) from error
    return value


class UpstreamModel(BaseModel):
    """What all kinds share: unknown keys are errors, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScriptedConfig(UpstreamModel):
    """An upstream that obeys a script instead of asking a model. See docs/reference/scripted.md."""

    kind: Literal["scripted"]
    script: Annotated[str, AfterValidator(_script)] | None = Field(
        default=None, description="What to do with every prompt that is not itself a script; default is a short demo answer."
    )
    rate: PositiveFloat = Field(default=40.0, description="Words per second of the demo answer.")
    idle_timeout_s: PositiveFloat = Field(default=30.0, description="When a scripted silence becomes an idle time-out.")
    retries: NonNegativeInt = Field(default=0, description="Further tries before the first output, with backoff.")
    breaker: BreakerConfig | None = Field(
        default=None,
        description="When it is left alone for a while. None: it is always asked, because it fails when it is told to.",
    )


class BreakerConfig(UpstreamModel):
    """When an upstream is left alone for a while. What a client did wrong (4xx but 408 and 429) is not counted."""

    failures: PositiveInt = Field(default=5, description="It opens after so many failures in a row …")
    share: Annotated[float, Field(gt=0, le=1)] = Field(default=0.5, description="… or this share of failures …")
    window: PositiveInt = Field(default=20, description="… among so many calls.")
    open_s: PositiveFloat = Field(default=10.0, description="So long nobody is let through; then one call, to find out.")


class OpenAIConfig(UpstreamModel):
    """Any server that speaks OpenAI's chat completions: OpenAI, vLLM, Ollama, OpenRouter, llama.cpp …"""

    kind: Literal["openai"]
    base_url: Annotated[str, AfterValidator(_base_url)] = Field(description="Up to and including `/v1`.")
    api_key: SecretStr | None = Field(default=None, description="Sent as a bearer token. Absent or empty: no such header.")
    headers: dict[str, SecretStr] = Field(default_factory=dict, description="Further headers; their values are secrets too.")
    connect_timeout_s: PositiveFloat = Field(default=5.0, description="Name resolution, TCP and TLS together.")
    idle_timeout_s: PositiveFloat = Field(default=30.0, description="The longest silence, before the first byte too.")
    total_timeout_s: PositiveFloat = Field(default=600.0, description="The longest a whole answer may take.")
    max_line_bytes: PositiveInt = Field(default=MIB, description="The longest line, and the longest event.")
    max_answer_bytes: PositiveInt = Field(default=64 * MIB, description="The largest answer, with everything around its text.")
    retries: NonNegativeInt = Field(default=2, description="Further tries before the first output, with backoff.")
    breaker: BreakerConfig | None = Field(
        default=BreakerConfig(), description="When it is left alone for a while. None: it is always asked."
    )
    continues: bool = Field(default=False, description="The server can continue an answer from what was said already.")
    continue_fields: dict[str, Any] = Field(
        default_factory=lambda: {"add_generation_prompt": False, "continue_final_message": True},
        description="Body fields that make it continue the last assistant message; the default is vLLM's.",
    )
    developer_role: bool = Field(default=True, description="False: messages of role `developer` are sent as `system`.")
    stream: bool = Field(default=True, description="False: ask for whole answers; they arrive in one piece.")
    usage: bool = Field(default=True, description="Send `stream_options.include_usage`. False for servers that refuse it.")


UpstreamConfig = Annotated[ScriptedConfig | OpenAIConfig, Field(discriminator="kind")]


def secrets_of(configs: Mapping[str, UpstreamConfig]) -> list[str]:
    """Every secret that these configurations hold."""
    held = [
        slot
        for config in configs.values()
        if isinstance(config, OpenAIConfig)
        for slot in (config.api_key, *config.headers.values())
    ]
    return [slot.get_secret_value() for slot in held if slot is not None]
