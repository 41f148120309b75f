"""`headgate keys` on a data folder without a server, on one whose server runs, and on a configured database."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.embedded import Addresses

TEXT = re.compile(r"sk-hg-[A-Za-z0-9_-]{43}\n")


async def keys(*arguments: str, **environ: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    command = [sys.executable, "-m", "headgate", "keys", *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdin=-3, stdout=-1, stderr=-1, env=environ)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def done(*arguments: str, **environ: str) -> Any:
    code, out, err = await keys(*arguments, "--json", **environ)
    assert (code, err) == (0, ""), err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.local
async def test_a_key_from_its_making_to_its_end(backends: Addresses) -> None:
    configured = {"HEADGATE_BACKENDS__POSTGRES": backends.postgres, "HEADGATE_AUTH__MODE": "keys"}
    code, out, err = await keys(
        "create",
        "--name",
        "ci",
        "--tenant",
        "cli",
        "--scope",
        "runs:read",
        "--scope",
        "admin",
        "--limits",
        "{runs: 2}",
        **configured,
    )
    assert code == 0
    assert TEXT.fullmatch(out)
    key_id = err.split()[0]
    assert err == f"{key_id} of tenant cli may admin, runs:read. It is shown this once:\n"
    (listed,) = await done("list", "--tenant", "cli", **configured)
    assert listed["limits"]["runs"] == 2
    mistaken = await keys("create", "--name", "ci", "--limits", "{runs: 0}", **configured)
    assert mistaken == (2, "", "headgate: the configuration is not valid:\n  --limits: runs: Input should be greater than 0\n")
    assert (listed["id"], listed["prefix"], listed["status"], listed["scopes"]) == (
        key_id,
        out[:14],
        "active",
        ["admin", "runs:read"],
    )

    (rotated,) = await done("rotate", key_id, "--overlap", "1h", **configured)
    assert (rotated["replaces"]["id"], rotated["replaces"]["status"]) == (key_id, "active")
    assert TEXT.fullmatch(rotated["key"] + "\n")
    (revoked,) = await done("revoke", rotated["id"], **configured)
    assert revoked["status"] == "revoked"
    assert await keys("rotate", rotated["id"], **configured) == (
        1,
        "",
        "headgate: This key has been revoked or has expired. Create a new one.\n",
    )
    assert await keys("revoke", "key_0", **configured) == (1, "", "headgate: No such key.\n")
    table = (await keys("list", "--tenant", "cli", **configured))[1]
    assert [line.split()[0] for line in table.splitlines()] == ["KEY", rotated["id"], key_id]
    assert out.strip() not in table


@pytest.mark.local
async def test_the_first_key_needs_no_server_and_later_ones_find_the_one_that_runs(tmp_path: Path) -> None:
    folder = ("--data", str(tmp_path / "data"))
    (first,) = await done("create", "--name", "first", *folder, HEADGATE_AUTH__MODE="keys")
    command = [sys.executable, "-m", "headgate", "serve", "--port", "0", *folder]
    environ = {"HEADGATE_AUTH__MODE": "keys", "HEADGATE_GRPC__ENABLED": "false"}
    server = await asyncio.create_subprocess_exec(*command, stdin=-3, stdout=-1, stderr=-3, env=environ)
    assert server.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await server.stdout.readuntil(b". Try")).decode().split()[3].removesuffix(".")
        (second,) = await done("create", "--name", "second", "--expires", "30d", *folder, HEADGATE_AUTH__MODE="keys")
        assert [each["name"] for each in await done("list", *folder)] == ["second", "first"]
        for key in (first, second):
            assert "headgate-demo" in await models(url, key["key"])
    finally:
        server.terminate()
        await server.wait()


async def models(url: str, key: str) -> list[str]:
    command = [sys.executable, "-m", "headgate", "models", "--url", url, "--key", key]
    process = await asyncio.create_subprocess_exec(*command, stdout=-1)
    out, _ = await process.communicate()
    return out.decode().splitlines()


async def test_where_there_is_no_auth_it_says_so_and_where_there_is_no_database_too(tmp_path: Path) -> None:
    code, out, err = await keys("list", "--data", str(tmp_path), HEADGATE_ROLE="gateway")
    assert (code, out) == (1, "")
    assert err.startswith("headgate: A gateway that runs apart has no database of its own.")


@pytest.mark.parametrize("arguments", [
    (), ("create",), ("create", "--name", ""), ("create", "--name", "a\nb"), ("create", "--name", "a", "--scope", "root"),
    ("create", "--name", "a", "--expires", "soon"), ("create", "--name", "a", "--tenant", "a b"), ("revoke",),
    ("rotate", "key_0", "--overlap", "-1s"),
])  # fmt: skip
async def test_wrong_usage_is_told_before_anything_is_started(arguments: tuple[str, ...]) -> None:
    code, out, err = await keys(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: headgate keys")
