"""The configuration: its defaults, where values come from, and what a mistake is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from gateway.settings import Settings, TemporalAddress, load
from gateway.settings_errors import ConfigError
from gateway.settings_layers import Override

SHIPPED = Path(__file__).parents[2] / "config.yaml"


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, "utf-8")
    return file


def mistakes(file: Path | None = None, environ: Mapping[str, str] | None = None, *flags: Override) -> list[str]:
    """The lines of the refusal, without the folder that the file is in."""
    with pytest.raises(ConfigError) as refusal:
        load(file, environ=environ or {}, flags=flags)
    return [line.replace(f"{file.parent}/", "") if file else line for line in refusal.value.lines]


class TestDefaults:
    def test_the_shipped_file_is_the_defaults_written_out(self) -> None:
        assert load(SHIPPED, environ={}) == load(environ={}) == Settings.model_validate({})

    def test_the_shipped_file_names_every_knob(self) -> None:
        written = yaml.safe_load(SHIPPED.read_text("utf-8"))
        assert list(written) == list(Settings.model_fields)
        for name, field in Settings.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                assert list(written[name]) == list(field.annotation.model_fields), name

    def test_the_examples_in_the_shipped_file_are_valid(self, tmp_path: Path) -> None:
        """They become part of the file; what they replace leaves it."""
        text = re.sub(r"(?m)^( *)#(?=\S|  )", r"\1", SHIPPED.read_text("utf-8"))
        text = text.replace("  mode: off ", "  mode: keys ").replace("tools: {}\n", "")
        text = re.sub(r"(?m)^  (keys: \[\]|jwt:  |temporal: embedded).*\n", "", text)
        settings = load(write(tmp_path, text), environ={})
        assert list(settings.upstreams) == ["demo", "ollama", "vllm", "openai"]
        assert list(settings.models) == ["headgate-demo", "headgate-research", "headgate-review", "local/*", "support", "*"]
        assert list(settings.tools) == ["weather", "files", "search"]
        assert isinstance(settings.backends.temporal, TemporalAddress)
        assert settings.auth.keys[0].name == "alice"
        assert settings.auth.keys[0].expires == datetime(2027, 1, 1, tzinfo=UTC)
        assert settings.auth.jwt is not None
        assert settings.auth.jwt.algorithms == ("RS256", "ES256")

    def test_an_empty_file_and_an_empty_section_mean_the_defaults(self, tmp_path: Path) -> None:
        assert load(write(tmp_path, ""), environ={}) == load(write(tmp_path, "log:\nserver:\n"), environ={}) == load(environ={})


class TestLayers:
    def test_flags_beat_the_environment_beats_the_file(self, tmp_path: Path) -> None:
        file = write(tmp_path, "server: {host: localhost, port: 1, drain_s: 3}\n")
        environ = {"HEADGATE_SERVER__PORT": "2", "HEADGATE_SERVER__DRAIN_S": "4"}
        server = load(file, environ=environ, flags=[Override(("server", "port"), 3, "--port")]).server
        assert (server.host, server.port, server.drain_s, server.max_body_bytes) == ("localhost", 3, 4.0, 32 * 1024 * 1024)

    def test_references_to_the_environment(self, tmp_path: Path) -> None:
        file = write(
            tmp_path,
            """
server: {port: "${PORT}"}
data_dir: ${HOME}/${DIR:-head gate}/${EMPTY}/${EMPTY:-full}/$${HOME}/$5
""",
        )
        settings = load(file, environ={"PORT": "81", "HOME": "/root", "EMPTY": ""})
        assert settings.server.port == 81
        assert str(settings.data_dir) == "/root/head gate/full/${HOME}/$5"

    def test_every_name_that_is_not_set_is_reported(self, tmp_path: Path) -> None:
        file = write(tmp_path, "auth: {mode: keys, keys: [{key: '${A}', name: x}]}\ndata_dir: ${B}\n")
        assert mistakes(file) == [
            "config.yaml: auth.keys.0.key: environment variable A is not set (a default would be ${A:-…})",
            "config.yaml: data_dir: environment variable B is not set (a default would be ${B:-…})",
        ]

    def test_a_secret_from_the_environment_is_taken_literally(self) -> None:
        environ = {"HEADGATE_BACKENDS__REDIS": "redis://:pa${ss}@host"}
        redis = load(environ=environ).backends.redis
        assert isinstance(redis, SecretStr)
        assert redis.get_secret_value() == "redis://:pa${ss}@host"

    def test_a_whole_section_fits_in_one_variable_and_its_parts_go_on_top(self) -> None:
        environ = {
            "HEADGATE_UPSTREAMS__LOCAL_1__IDLE_TIMEOUT_S": "7",
            "HEADGATE_UPSTREAMS": '{"Local-1": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"}}',
            "HEADGATE_MODELS": '{"*": {"plan": {"agent": {"upstream": "Local-1"}}}}',
        }
        settings = load(environ=environ)
        assert list(settings.upstreams) == ["Local-1"]
        assert settings.upstreams["Local-1"].idle_timeout_s == 7

    def test_names_with_hyphens_can_be_reached(self) -> None:
        assert load(environ={"HEADGATE_MODELS__HEADGATE_DEMO__DURABILITY": "none"}).models["headgate-demo"].durability == "none"

    def test_variables_of_others_are_left_alone(self) -> None:
        """A cluster sets HEADGATE_PORT=tcp://… for a service that is called headgate; the client reads HEADGATE_URL."""
        environ = {"HEADGATE_PORT": "tcp://10.0.0.1:8080", "HEADGATE_SERVICE_HOST": "10.0.0.1", "HEADGATE_URL": "http://x"}
        assert load(environ=environ) == load(environ={})

    def test_off_is_a_word(self, tmp_path: Path) -> None:
        """YAML 1.1 reads `off` as false, and the documented `mode: off` would be refused."""
        assert load(write(tmp_path, "auth: {mode: off}\n"), environ={}).auth.mode == "off"

    def test_naming_upstreams_without_models_does_not_bring_the_demo_back(self, tmp_path: Path) -> None:
        file = write(tmp_path, "upstreams: {mine: {kind: scripted}}\n")
        assert mistakes(file) == ["config.yaml: models: is missing"]

    def test_whoever_only_starts_workflows_needs_no_upstream(self, tmp_path: Path) -> None:
        """The how-to names a model and nothing else, and was told that `upstreams` is missing."""
        file = write(tmp_path, "models: {haiku: {workflow: {type: Haiku, task_queue: poets}}}\n")
        settings = load(file, environ={})
        assert (list(settings.models), settings.upstreams) == (["haiku"], {})


MISTAKES: list[tuple[str, list[str]]] = [
    ("sever: {port: 1}", ["unknown key 'sever' (did you mean 'server'?)"]),
    ("server: {port: 80800}", ["server.port: should be less than or equal to 65535"]),
    ("server: {prot: 1}", ["server: unknown key 'prot' (did you mean 'port'?)"]),
    ("runs: {xyzzy: 1}", ["runs: unknown key 'xyzzy' (known: heartbeat_s, janitor_s, sdk_retries)"]),
    ("server: {origins: [app.example.com]}", [
        "server.origins.0: should be '*', or scheme and host as in https://app.example.com: browsers send no path",
    ]),
    ("backends: {temporal: {adress: 'a:1'}}", [
        "backends.temporal.address: is missing",
        "backends.temporal: unknown key 'adress' (did you mean 'address'?)",
    ]),
    ("backends: {temporal: '127.0.0.1'}", ["backends.temporal: should be 'embedded' or host:port"]),
    ("server: {max_body_bytes: lots}", ["server.max_body_bytes: should be a size such as 65536 or 64KiB"]),
    ("auth: {keys: ''}", ["auth.keys: should be a list"]),
    ("models: {m: {plan: {agent: {upstream: mine}}}}", ["models.m.plan.agent.upstream: there is no upstream 'mine'"]),
    ("backends: {redis: 'http://x'}", [
        "backends.redis: should be 'embedded' or an address that begins with redis:// or rediss:// or unix://",
    ]),
    ("models: {foo: {plan: {agent: {upstream: demo, upstrem: demo}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent: unknown key 'upstrem' (did you mean 'upstream'?)",
    ]),
    ("models: {foo: {plan: {agent: {upstream: [demo, dmo]}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent.upstream: there is no upstream 'dmo' (did you mean 'demo'?)",
    ]),
    ("models: {foo: {plan: {agent: {upstream: {demo: 3, b: -1}}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent.upstream.b: should be greater than or equal to 0",
    ]),
    ("models: {foo: {plan: {agent: {upstream: {demo: 3, dmo: 1}}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent.upstream.dmo: there is no upstream 'dmo' (did you mean 'demo'?)",
    ]),
    ("models: {foo: {plan: {agent: {upstream: [demo], route: {hedge: {}}}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent.route: hedge needs a second upstream",
    ]),
    ("models: {foo: {plan: {agent: {upstream: demo, route: {hegde: {}}}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.foo.plan.agent.route: unknown key 'hegde' (did you mean 'hedge'?)",
    ]),
    ("models: {f*: {plan: {agent: {upstream: demo}}}}\nupstreams: {demo: {kind: scripted}}", [
        "models.f*: is neither an exact name, nor prefix/*, nor *",
    ]),
    ("upstreams: {a: {kind: openai, base_url: 'http://h/v1'}}\nmodels: {m: {plan: {agent: {upstream: a, on_cut: continue}}}}", [
        "models.m.plan.agent.on_cut: 'continue' needs `continues: true` at upstreams.a; or choose 'regenerate'",
    ]),
    ("upstreams: {d: {kind: scripted}}\nlog: {retention_hours: 2}\n"
     "models: {m: {plan: {agent: {upstream: d}}, cache: {exact: true, ttl_s: 7201}}}", [
        "models.m.cache.ttl_s: is longer than the 7200 s of log.retention_hours, and the log is what is given again",
    ]),
    ("upstreams: {d: {kind: scripted}}\nmodels: {m: {plan: {agent: {upstream: d}}, cache: {exact: true, ttl_s: 60,"
     " semantic: {upstream: d, embedding_model: e, ttl_s: 86401}}}}", [
        "models.m.cache.semantic.ttl_s: is longer than the 86400 s of log.retention_hours, and the log is what is given again",
        "models.m.cache.semantic.upstream: needs an upstream of kind 'openai': a scripted one does not know what words mean",
    ]),
    ("upstreams: {d: {kind: scripted}}\nmodels: {m: {plan: {agent: {upstream: d}}, cache: {exact: true,"
     " semantic: {upstream: dd, embedding_model: e, threshold: 1.5}}}}", [
        "models.m.cache.semantic.threshold: should be less than or equal to 1",
    ]),
    ("models: {m: {plan: {workflow: {type: T, task_queue: q}}, cache: {exact: true}}}", [
        "models.m: what a workflow of your own does, nobody here knows: caching its answers needs cache.side_effects",
    ]),
    ("models: {m: {workflow: {type: T, task_queue: q}, cache: {exact: true}}}", [
        "models.m: only a plan's answers can be cached: what a workflow of your own does, nobody here knows",
    ]),
    ("upstreams: {a: {kind: openai, base_url: 'http://h/v1'}, b: {kind: openai, base_url: 'http://h/v1'}}\n"
     "models: {m: {plan: {agent: {upstream: [a, b], on_cut: continue}}}}", [
        "models.m.plan.agent.on_cut: 'continue' needs `continues: true` at upstreams.a or upstreams.b; or choose 'regenerate'",
    ]),
    ("upstreams: {a: {}, b: {kind: opnai}}\nmodels: {m: {plan: {agent: {upstream: a}}}}", [
        "upstreams.a: needs 'kind'",
        "upstreams.b: 'kind' should be one of 'scripted', 'openai'",
    ]),
    ("auth: {keys: [{key: a, name: a}]}", [
        "auth.mode: is 'off' although auth.keys has some; set it to keys, or take that out",
    ]),
    ("auth: {jwt: {issuer: i, audience: a, jwks_url: 'https://i/jwks'}}", [
        "auth.mode: is 'off' although auth.jwt is set; set it to keys, or take that out",
    ]),
    ("auth: {mode: keys, keys: [{key: a, name: key_000102030405060708090a0b, scopes: [root], expires: 2027-01-01T00:00:00}]}", [
        "auth.keys.0.name: is how the ids of stored keys look; choose another name",
        "auth.keys.0.scopes.0: should be 'runs:read', 'runs:write', 'runs:execute-inline', 'approvals:decide' or 'admin'",
        "auth.keys.0.expires: should have timezone info",
    ]),
    ("auth: {mode: keys, jwt: {issuer: i, audience: a}}", ["auth.jwt: needs either jwks_url or secret"]),
    ("auth: {mode: keys, jwt: {issuer: i, audience: a, jwks_url: 'https://i/', secret: x}}", [
        "auth.jwt: needs either jwks_url or secret",
    ]),
    ("auth: {mode: keys, jwt: {issuer: i, audience: a, jwks_url: 'http://i/'}}", [
        "auth.jwt: jwks_url should be https://…: whoever can change what is read there can be anybody here",
    ]),
    ("auth: {mode: keys, jwt: {issuer: i, audience: a, jwks_url: 'https://i/', algorithms: [RS256, HS256]}}", [
        "auth.jwt: HS256 proves nothing where keys are public: it is for a secret",
    ]),
    (f"auth: {{mode: keys, jwt: {{issuer: i, audience: a, secret: {'x' * 32}, algorithms: [HS256, RS256]}}}}", [
        "auth.jwt: with a secret, algorithms are HS256, HS384 or HS512",
    ]),
    (f"auth: {{mode: keys, jwt: {{issuer: i, audience: a, secret: {'x' * 32}, algorithms: [HS256, HS384]}}}}", [
        "auth.jwt: secret should have 48 characters or more",
    ]),
    ("auth: {mode: keys, jwt: {issuer: i, audience: a, jwks_url: 'https://i/', algorithms: [none]}}", [
        "auth.jwt.algorithms.0: should be 'HS256', 'HS384', 'HS512', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512', "
        "'ES256', 'ES384', 'ES512' or 'EdDSA'",
    ]),
    ("auth: {mode: keys, keys: [{key: '', name: a}]}", [
        "auth.keys.0.key: should be printable ASCII without spaces, and not empty: it travels in a header",
    ]),
    ("auth: {mode: keys, keys: [{key: s3cret, name: a}, {key: s3cret, name: a}]}", [
        "auth.keys.1.key: is that of another key as well",
        "auth.keys.1.name: is that of another key as well",
    ]),
    ("server: {host: 0.0.0.0}", [
        "auth.mode: 'off' is refused while server.host is 0.0.0.0, which other machines can reach; "
        "set auth.mode to keys, or set server.host to 127.0.0.1",
    ]),
    ("- a", ["should consist of sections such as `server:`"]),
]  # fmt: skip


class TestMistakes:
    @pytest.mark.parametrize(("text", "lines"), MISTAKES)
    def test_is_told_with_its_path(self, tmp_path: Path, text: str, lines: list[str]) -> None:
        assert mistakes(write(tmp_path, text)) == [f"config.yaml: {line}" for line in lines]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("server:\n  port: 1\n  port: 2\n", "config.yaml:3:3: key 'port' is given twice"),
            ("server: {port: 1\nauth: x\n", "config.yaml:2:5: expected ',' or '}', but got ':'"),
        ],
    )
    def test_in_the_yaml_is_told_with_its_line(self, tmp_path: Path, text: str, line: str) -> None:
        assert mistakes(write(tmp_path, text)) == [line]

    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert mistakes(tmp_path / "config.yaml")[0] == "config.yaml: cannot be read: No such file or directory"

    def test_names_the_variable_or_flag_that_made_it(self) -> None:
        assert mistakes(None, {"HEADGATE_SERVER__PORT": "many", "HEADGATE_AUTH__MOD": "off"}) == [
            "HEADGATE_SERVER__PORT: server.port: should be a whole number",
            "HEADGATE_AUTH__MOD: auth: unknown key 'mod' (did you mean 'mode'?)",
        ]
        assert mistakes(None, {"HEADGATE_SEVER__PORT": "1"}) == [
            "HEADGATE_SEVER__PORT: there is no section 'sever' (did you mean 'server'?)"
        ]
        assert mistakes(None, {}, Override(("server", "port"), 70000, "--port")) == [
            "--port: should be less than or equal to 65535"
        ]

    def test_grpc_listens_where_the_server_does_and_its_host_counts_too(self) -> None:
        assert load(environ={}).grpc.host is None
        assert mistakes(None, {"HEADGATE_GRPC__HOST": "0.0.0.0"}) == [
            "configuration: auth.mode: 'off' is refused while grpc.host is 0.0.0.0, which other machines can reach; "
            "set auth.mode to keys, or set grpc.host to 127.0.0.1",
        ]

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
    def test_no_key_is_needed_on_loopback(self, host: str) -> None:
        assert load(environ={"HEADGATE_SERVER__HOST": host}).auth.mode == "off"

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "127.0.0.1.example.org"])
    def test_a_key_is_needed_elsewhere(self, host: str) -> None:
        assert mistakes(None, {"HEADGATE_SERVER__HOST": host})[0].startswith("configuration: auth.mode: 'off' is refused")


def test_secrets_do_not_print(tmp_path: Path) -> None:
    """Neither in a representation, nor in a dump, nor in the message about a mistake beside them."""
    file = write(
        tmp_path,
        """
auth: {mode: keys, keys: [{key: canary-1, name: a}]}
backends: {redis: "redis://:canary-2@h", postgres: "postgresql://u:canary-3@h/d", temporal: {address: "h:1", api_key: canary-4}}
upstreams: {a: {kind: openai, base_url: "http://h/v1", api_key: canary-5, headers: {x: canary-6}}}
models: {m: {plan: {agent: {upstream: a}}}}
""",
    )
    settings = load(file, environ={})
    shown: list[Any] = [repr(settings), str(settings), settings.model_dump_json(), settings.model_dump()]
    assert "canary" not in str(shown)
    broken = write(tmp_path, file.read_text("utf-8").replace("h:1", "canary-7").replace("redis://", "canary-8"))
    assert "canary" not in str(mistakes(broken))
