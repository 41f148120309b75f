"""The commands that talk to a server: `submit`, `stream`, `models`."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import aclosing

from headgate.chat_door import Answer, ChatDoor, Refused
from headgate.terminal import AnswerPrinter, JsonPrinter, note


async def submit(arguments: Namespace) -> None:
    """Ask and show the answer. Leaving early closes the connection, which the server takes as a wish to cancel."""
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    async with ChatDoor(arguments.url, arguments.key) as door:
        model = arguments.model or await _first_model(door)
        question = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        await _show(door.ask(question), json=arguments.json)


async def stream(arguments: Namespace) -> None:
    """Show a run's answer, from its start or from a position."""
    async with ChatDoor(arguments.url, arguments.key) as door:
        await _show(door.follow(arguments.run_id, arguments.after), json=arguments.json)


async def models(arguments: Namespace) -> None:
    """List the models."""
    async with ChatDoor(arguments.url, arguments.key) as door:
        for model in await door.models():
            if arguments.json:
                JsonPrinter(sys.stdout).show(model)
            else:
                print(model["id"])


async def _first_model(door: ChatDoor) -> str:
    if not (listed := await door.models()):
        raise Refused({"message": "The server lists no models; name one with --model."})
    return str(listed[0]["id"])


async def _show(answer: Answer, *, json: bool) -> None:
    printer = JsonPrinter(sys.stdout) if json else AnswerPrinter(sys.stdout)
    answer.on_run = lambda run_id: note(f"run {run_id}")
    answer.on_loss = lambda pause_s: note(f"connection lost after {answer.received} chunks, trying again in {pause_s:g} s")
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                printer.show(chunk)
    finally:
        printer.end()
    if summary := printer.summary():
        note(summary)
