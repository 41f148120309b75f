"""The image and the compose file, as far as they can be checked without an engine: they need what the code needs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from setuptools import find_packages

from gateway.settings import load

ROOT = Path(__file__).parents[1]
SECRETS = {"HEADGATE_API_KEY": "change-me", "POSTGRES_PASSWORD": "secret"}


def packages() -> set[str]:
    """The folders that an installation consists of."""
    return set(find_packages(str(ROOT), include=["gateway", "orchestrator", "protos", "headgate"]))


def test_every_package_is_in_the_image() -> None:
    """An image without `protos` was built, and could not start: the gRPC door imports them."""
    copied = set(re.findall(r"^COPY (\w+) \1$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE))
    let_in = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text("utf-8"), re.MULTILINE))
    assert len(packages()) == 4
    assert copied == let_in == packages()


def test_the_variables_of_the_image_are_settings() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8")
    environ = dict(re.findall(r"(HEADGATE_\w+)=([^\s'\\]+)", lines.partition("\nENV ")[2].partition("\nUSER ")[0]))
    settings = load(environ=environ | {"HEADGATE_AUTH__KEYS": '[{"key": "change-me", "name": "me"}]'})
    assert (settings.server.host, settings.server.port, settings.grpc.port) == ("0.0.0.0", 8080, 50052)
    assert (str(settings.data_dir), settings.auth.mode) == ("/data", "keys")


def test_the_variables_of_the_compose_file_are_settings() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    service = compose["services"]["headgate"]
    environ = {name: _filled_in(text) for name, text in service["environment"].items()}
    settings = load(environ=environ | {"HEADGATE_AUTH__MODE": "keys"})  # which the image sets
    assert [key.key.get_secret_value() for key in settings.auth.keys] == ["change-me"]
    assert "embedded" not in (settings.backends.redis, settings.backends.temporal, settings.backends.postgres)
    grace_s = float(service["stop_grace_period"].removesuffix("s"))
    assert grace_s > settings.server.drain_s + 5


def _filled_in(text: str) -> str:
    return re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda found: SECRETS[found[1]], text)
