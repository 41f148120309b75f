"""`headgate serve`: from settings to a running server, and what to try once it runs."""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from pathlib import Path

import uvloop

from gateway import app
from gateway.observe import logs
from gateway.settings import Settings, load
from gateway.settings_layers import Override
from headgate.terminal import BOLD, note, styled

_FLAGS = {"host": ("server", "host"), "port": ("server", "port"), "data": ("data_dir",)}


def settings_of(arguments: Namespace) -> Settings:
    """Flags over environment over file over defaults. Raises ConfigError."""
    given = {name: value for name in _FLAGS if (value := getattr(arguments, name)) is not None}
    return load(arguments.config, flags=[Override(_FLAGS[name], value, f"--{name}") for name, value in given.items()])


def serve(arguments: Namespace) -> None:
    """Runs until SIGTERM or SIGINT. Raises ConfigError, and HeadgateError or OSError when it cannot start."""
    settings = settings_of(arguments)
    logs.configure(settings.logging.level)
    note(starting(settings))

    def announce(url: str) -> None:
        _spare_the_collector()
        print(welcome(url, settings), flush=True)

    uvloop.run(app.serve(settings, announce=announce, progress=note))


def _spare_the_collector() -> None:
    """What start-up made stays for good, and nearly all that a stream makes goes without a cycle, so the collector of cycles is
    kept from walking all of it a thousand times a second. Measured: 8 % of a burst.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def starting(settings: Settings) -> str:
    """What is being waited for."""
    embedded = [name for name in ("redis", "temporal", "postgres") if getattr(settings.backends, name) == "embedded"]
    own = f" with its own {', '.join(embedded)} in {settings.data_dir}" if embedded else ""
    return f"Headgate is starting{own} ..."


def welcome(url: str, settings: Settings) -> str:
    """Where the server listens, and three ways to talk to it, ready to paste."""
    model = next((name for name in settings.models if not name.endswith("*")), "MODEL")
    python = _interpreter()
    keyed = settings.auth.mode == "keys"
    text = _KEYED if keyed else _OPEN
    examples = text.format(url=url, model=model, python=python, headgate=python.with_name("headgate"))
    return styled(f"Headgate listens on {url}. Try, in another terminal:", BOLD, sys.stdout) + "\n\n" + examples


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

_KEYED = "export HEADGATE_API_KEY=...   # one of auth.keys\n\n" + _OPEN.replace(
    "-H 'Content-Type", '-H "Authorization: Bearer $HEADGATE_API_KEY" \\\n  -H \'Content-Type'
).replace("from openai", "import os\nfrom openai").replace('api_key="none"', 'api_key=os.environ["HEADGATE_API_KEY"]')
