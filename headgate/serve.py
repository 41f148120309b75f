"""`headgate serve`: from settings to a running server, and what to try once it runs."""

from __future__ import annotations

import errno
import gc
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import uvloop

from gateway import app
from gateway.observe import logs
from gateway.settings import Settings, load
from gateway.settings_layers import Override
from headgate.terminal import BOLD, note, styled
from headgate.workers import held, supervise
from orchestrator.errors import HeadgateError

_FLAGS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "host": (("server", "host"), ("orchestrator", "host")),
    "port": (("server", "port"), ("orchestrator", "port")),
    "data": (("data_dir",),),
    "role": (("role",),),
    "workers": (("server", "workers"),),
}
"""What each flag sets. A process listens in one of two places, depending on its role, and that is the one that is meant."""


def settings_of(arguments: Namespace) -> Settings:
    """Flags over environment over file over defaults. Raises ConfigError."""
    given = {name: value for name in _FLAGS if (value := getattr(arguments, name)) is not None}
    flags = [Override(path, value, f"--{name}") for name, value in given.items() for path in _FLAGS[name]]
    return load(arguments.config, flags=flags)


def serve(arguments: Namespace) -> None:
    """Runs until SIGTERM or SIGINT. Raises ConfigError, and HeadgateError or OSError when it cannot start."""
    settings = settings_of(arguments)
    logs.configure(settings.logging.level, settings.logging.format)
    if arguments.worker:
        uvloop.run(app.serve(settings, announce=_announce, progress=lambda _: None, reuse_port=True))
        return
    _can_listen(settings)
    note(starting(settings))
    if said := admitting(settings):
        note(said)

    def welcoming(url: str) -> None:
        _announce(welcome(url, settings))

    if settings.server.workers > 1:
        uvloop.run(supervise(settings, _flags_of_workers(arguments), announce=welcoming, progress=note))
    else:
        uvloop.run(app.serve(settings, announce=welcoming, progress=note))


class CannotListen(HeadgateError):
    """The address cannot be listened on."""

    code = "cannot_listen"


def _can_listen(settings: Settings) -> None:
    """Whoever has chosen a port that is taken hears of it before databases are started. Raises CannotListen."""
    server, grpc, inside = settings.server, settings.grpc, settings.orchestrator
    doors = [("--port", server.host, server.port)]
    if settings.role == "orchestrator":
        doors = [("--port", inside.host, inside.port)]
    elif grpc.enabled and grpc.port is not None:
        doors.append(("grpc.port", grpc.host or server.host, grpc.port))
    for choice, host, port in doors:
        try:
            with held(host, port):
                pass
        except OSError as error:
            why, what = error.strerror or error, "another address with --host"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                what = f"another port with {choice} (0 is a free one)"
            raise CannotListen(f"Cannot listen on {host}:{port}: {why}. Choose {what}.") from None


def _announce(text: str) -> None:
    _spare_the_collector()
    print(text, flush=True)


def _flags_of_workers(arguments: Namespace) -> list[str]:
    """What was given to us, without the number of workers and the port, which the workers are told."""
    names = ("config", "host", "data", "role")
    return [part for name in names if (value := getattr(arguments, name)) is not None for part in (f"--{name}", str(value))]


def _spare_the_collector() -> None:
    """What start-up made stays for good, and nearly all that a stream makes goes without a cycle, so the collector of cycles is
    kept from walking all of it a thousand times a second. Measured: 8 % of a burst.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def starting(settings: Settings) -> str:
    """What is being waited for."""
    if settings.role == "gateway":
        return f"Headgate's gateway is starting for {' and '.join(settings.orchestrator.urls)} ..."
    embedded = [name for name in ("redis", "temporal", "postgres") if getattr(settings.backends, name) == "embedded"]
    own = f" with its own {', '.join(embedded)} in {settings.data_dir}" if embedded else ""
    return f"{_name(settings)} is starting{own} ..."


def admitting(settings: Settings) -> str | None:
    """Who may come in, where that is not as one might think."""
    auth = settings.auth
    if settings.role == "orchestrator":
        return None
    if auth.mode == "off":
        return "auth.mode is off: every program on this machine may do everything, at every door."
    if not auth.keys and auth.jwt is None:
        return "The configuration lists no keys: `headgate keys create` makes one, now or later."
    return None


def _name(settings: Settings) -> str:
    return "Headgate's orchestrator" if settings.role == "orchestrator" else "Headgate"


def welcome(url: str, settings: Settings) -> str:
    """Where the server listens, and three ways to talk to it, ready to paste."""
    if settings.role == "orchestrator":
        text = f"{_name(settings)} listens on {url}, for gateways only. Start one with:"
        return styled(text, BOLD, sys.stdout) + f"\n\nHEADGATE_ORCHESTRATOR__URLS={url} headgate serve --role gateway\n"
    model = next((name for name in settings.models if not name.endswith("*")), "MODEL")
    python = _interpreter()
    keyed = settings.auth.mode == "keys"
    text = _KEYED if keyed else _OPEN
    examples = text.format(url=_from_here(url), model=model, python=python, headgate=python.with_name("headgate"))
    return styled(f"Headgate listens on {url}. Try, in another terminal:", BOLD, sys.stdout) + "\n\n" + examples


def _from_here(url: str) -> str:
    """An address that a client can use, also where the server listens on all of them."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _interpreter() -> Path:
    """That of this environment, which has the `openai` package for sure; as short as it can be written from here."""
    python = Path(sys.prefix, "bin", "python")
    return python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else python


_OPEN = """\
curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "What are you?"}}]}}'

{python} - <<'END'
from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key="none")
question = [{{"role": "user", "content": "What are you?"}}]
for chunk in client.chat.completions.create(model="{model}", messages=question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
END

{headgate} submit --url {url} --model {model} "What are you?"
"""

_KEYED = "export HEADGATE_API_KEY=...   # one of auth.keys, or of `headgate keys create`\n\n" + _OPEN.replace(
    "-H 'Content-Type", '-H "Authorization: Bearer $HEADGATE_API_KEY" \\\n  -H \'Content-Type'
).replace("from openai", "import os\nfrom openai").replace('api_key="none"', 'api_key=os.environ["HEADGATE_API_KEY"]')
