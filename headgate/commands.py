"""The commands that talk to a server. Each takes a client and its arguments, and raises what went wrong."""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping

from headgate.answers import Task, UsageGroup, UsageSum
from headgate.async_client import AsyncClient, StreamOptions, raise_unless_completed
from headgate.async_stream import AsyncEventStream
from headgate.calls import TaskOptions
from headgate.errors import ClientError, Conflict
from headgate.following import Loss
from headgate.live import LivePrinter
from headgate.terminal import note, print_facts, print_json, print_table
from orchestrator.events import ENDINGS

LEAVE_S = 10.0
"""How long an interrupted `submit` tries to have its task cancelled."""


async def submit(client: AsyncClient, arguments: Namespace) -> None:
    """Ask and show the answer. Whoever leaves early cancels the task."""
    query = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    options: TaskOptions = {}
    if arguments.model:
        options["model"] = arguments.model
    if arguments.session:
        options["session_id"] = arguments.session
    task = await client.submit(query, **options)
    if arguments.detach:
        print_json({"task_id": task.task_id}) if arguments.json else print(task.task_id)
        return
    if not arguments.json:
        note(f"run {task.task_id}")
    try:
        await _show(client, task.task_id, json=arguments.json)
    except (asyncio.CancelledError, BrokenPipeError):
        await _cancel(client, task.task_id)
        raise


async def stream(client: AsyncClient, arguments: Namespace) -> None:
    """Show a task's answer, from its start or from a position. Leaving leaves the task alone."""
    await _show(client, arguments.task_id, after=arguments.after, json=arguments.json)


async def status(client: AsyncClient, arguments: Namespace) -> None:
    task = await client.get(arguments.task_id)
    if arguments.json:
        print_json(task)
    else:
        print_facts(_facts(task))


async def list_tasks(client: AsyncClient, arguments: Namespace) -> None:
    found = await client.list(
        limit=arguments.limit, offset=arguments.offset, session_id=arguments.session, status=arguments.status
    )
    if arguments.json:
        for task in found.tasks:
            print_json(task)
        return
    if found.tasks:
        rows = [(task.task_id, task.status, task.created_at, task.model_used, task.query) for task in found.tasks]
        print_table(("TASK", "STATUS", "CREATED", "MODEL", "QUERY"), rows)
    else:
        note("no tasks")
    if (rest := found.total_count - arguments.offset - len(found.tasks)) > 0:
        note(f"{rest} more: --offset {arguments.offset + len(found.tasks)}")


async def control(client: AsyncClient, arguments: Namespace) -> None:
    """`cancel`, `pause` and `resume`."""
    ask = {"cancel": client.cancel, "pause": client.pause, "resume": client.resume}[arguments.command]
    accepted = await ask(arguments.task_id, arguments.reason)
    if arguments.json:
        print_json(accepted)
    else:
        note(accepted.message)


async def approvals(client: AsyncClient, arguments: Namespace) -> None:
    pending = await client.approvals(arguments.session)
    if arguments.json:
        for each in pending:
            print_json(each)
    elif pending:
        rows = [(each.workflow_id, each.approval_id, each.requested_at, each.proposed_action or "") for each in pending]
        print_table(("TASK", "APPROVAL", "REQUESTED", "ACTION"), rows)
    else:
        note("no task waits for a decision")


async def approve(client: AsyncClient, arguments: Namespace) -> None:
    decided = await client.approve(
        arguments.task_id, arguments.approval_id, approved=not arguments.deny, feedback=arguments.feedback
    )
    if arguments.json:
        print_json(decided)
    else:
        note(decided.message)


async def usage(client: AsyncClient, arguments: Namespace) -> None:
    report = await client.usage(arguments.first, arguments.last, by=arguments.by)
    if arguments.json:
        print_json(report)
        return
    names = [name for name in ("day", "key", "model") if name in arguments.by]
    table = [(*(_named(group, name) for name in names), *_counts(group)) for group in report.groups]
    total = ("total", *[""] * (len(names) - 1)) if names else ()
    print_table(
        (*(name.upper() for name in names), "RUNS", "PROMPT", "ANSWER", "USD"), [*table, (*total, *_counts(report.total))]
    )
    note(f"{report.first} to {report.last}, as of {report.as_of}")


def _named(group: UsageGroup, name: str) -> str:
    return {"day": group.day, "key": group.key_id, "model": group.model}[name] or ""


def _counts(used: UsageSum) -> tuple[str, str, str, str]:
    usd = "" if used.cost_nano_usd is None else f"{used.cost_nano_usd / 10**9:.6f}"
    return str(used.runs), str(used.prompt_tokens), str(used.completion_tokens), usd


async def models(client: AsyncClient, arguments: Namespace) -> None:
    for model in await client.models():
        print_json(model) if arguments.json else print(model.id)


Command = Callable[[AsyncClient, Namespace], Awaitable[None]]

COMMANDS: Mapping[str, Command] = {
    "submit": submit,
    "stream": stream,
    "status": status,
    "list": list_tasks,
    "cancel": control,
    "pause": control,
    "resume": control,
    "approvals": approvals,
    "approve": approve,
    "usage": usage,
    "models": models,
}


async def run(arguments: Namespace) -> None:
    """The command that `arguments` name."""
    async with AsyncClient(arguments.url, arguments.key) as client:
        await COMMANDS[arguments.command](client, arguments)


async def _show(client: AsyncClient, task_id: str, *, after: str | None = None, json: bool) -> None:
    """A task's stream to its end. Raises TaskNotCompleted if that is not the end of an answer."""
    if json:
        await _show_json(client.stream(task_id, **_options(note, after)))
        return
    # What comes after a position can only be told from what comes before it.
    printer = LivePrinter(sys.stdout, note, after=_seq(after))
    try:
        async with client.stream(task_id, **_options(printer.tell, None)) as events:
            async for event in events:
                printer.show(event)
    finally:
        printer.end()
    if printer.ending is not None:
        raise_unless_completed(printer.ending)
    if summary := printer.summary():
        note(summary)


async def _show_json(events: AsyncEventStream) -> None:
    ending = None
    async with events:
        async for event in events:
            print_json(event)
            ending = event if event.type in ENDINGS else ending
    if ending is not None:
        raise_unless_completed(ending)


def _options(tell: Callable[[str], None], after: str | None) -> StreamOptions:
    def lost(loss: Loss) -> None:
        tell(f"connection lost, trying again in {loss.pause_s:g} s")

    return {"on_loss": lost} if after is None else {"on_loss": lost, "last_event_id": after}


def _seq(position: str | None) -> int:
    return int((position or "0").rpartition("-")[2])


async def _cancel(client: AsyncClient, task_id: str) -> None:
    try:
        async with asyncio.timeout(LEAVE_S):
            await client.cancel(task_id, "interrupted")
    except Conflict:
        return  # it had ended already
    except (ClientError, TimeoutError):
        note(f"{task_id} could not be cancelled and goes on")


def _facts(task: Task) -> list[tuple[str, str | None]]:
    usage = task.usage
    return [
        ("task", task.task_id),
        ("status", task.status),
        ("model", task.model_used),
        ("session", task.session_id),
        ("created", task.created_at),
        ("started", task.started_at),
        ("completed", task.completed_at),
        ("progress", f"{task.progress:.0%}" if task.progress and not task.ended else None),
        ("tokens", None if usage is None else f"{usage.prompt_tokens} + {usage.completion_tokens}"),
        ("cost", None if usage is None or usage.cost_usd is None else f"{usage.cost_usd:.6f} USD"),
        ("query", task.query),
        ("error", task.error),
        ("result", task.result),
    ]
