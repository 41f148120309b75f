"""The `headgate` command against a server that loses connections: what it prints, where, and how it exits."""

from __future__ import annotations

import asyncio
import json
import sys

from aiohttp.test_utils import unused_port

from headgate import __version__
from tests.headgate.flaky import AT, EVENTS, MS, RUN, FlakyServer, cut_after, event, hang, serving

FAILED = event(3, "WORKFLOW_FAILED", payload={"error": {"code": "upstream_cut", "message": "The upstream went away."}})


async def headgate(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headgate", *arguments, stdin=-1, stdout=-1, stderr=-1, env={"HEADGATE_API_KEY": "k"}
    )
    out, err = await process.communicate(stdin)
    return process.returncode or 0, out.decode(), err.decode()


async def test_submit_prints_the_answer_and_keeps_everything_else_apart() -> None:
    server = FlakyServer(cut_after(2))
    async with serving(server) as url:
        assert await headgate("submit", "--url", url, "--model", "m", "--session", "s", "What are you?") == (
            0,
            "It is a gate…\u2028\n",
            f"run {RUN}\nconnection lost, trying again in 1 s\nfinish reason: stop, 3 + 4 tokens\n",
        )
    assert server.bodies == [{"query": "What are you?", "model": "m", "session_id": "s"}]
    assert [path.rpartition("?")[2] for _, path in server.requests[1:]] == [
        f"workflow_id={RUN}",
        f"workflow_id={RUN}&last_event_id={MS}-2",
    ]


async def test_submit_reads_standard_input() -> None:
    server = FlakyServer()
    async with serving(server) as url:
        assert (await headgate("submit", "--url", url, "-", stdin=b"Was?\n"))[0] == 0
    assert server.bodies == [{"query": "Was?\n"}]


async def test_submit_detached_prints_the_id_and_leaves() -> None:
    server = FlakyServer()
    async with serving(server) as url:
        assert await headgate("submit", "--url", url, "--detach", "hello") == (0, f"{RUN}\n", "")
    assert server.requests == [("POST", "/api/v1/tasks")]


async def test_stream_prints_envelopes_for_programs() -> None:
    async with serving(FlakyServer()) as url:
        code, out, err = await headgate("stream", "--url", url, "--json", "--after", "1", RUN)
    assert (code, [json.loads(line) for line in out.splitlines()], err) == (0, list(EVENTS[1:]), "")


async def test_stream_goes_on_after_a_position() -> None:
    async with serving(FlakyServer()) as url:
        assert await headgate("stream", "--url", url, "--after", f"{MS}-2", RUN) == (
            0,
            "a gate…\u2028\n",
            "finish reason: stop, 3 + 4 tokens\n",
        )


async def test_a_failure_is_told_after_what_was_said() -> None:
    async with serving(FlakyServer(events=[*EVENTS[:2], FAILED, event(4, "STREAM_END")])) as url:
        failed = "headgate: The upstream went away. (upstream_cut)\n"
        assert await headgate("stream", "--url", url, RUN) == (1, "It is \n", failed)
        code, out, err = await headgate("stream", "--url", url, "--json", RUN)
        assert (code, len(out.splitlines()), err) == (1, 4, failed)


async def test_models() -> None:
    async with serving(FlakyServer()) as url:
        assert await headgate("models", "--url", url) == (0, "headgate-demo\nother\n", "")


async def test_usage_is_a_table_for_people_and_what_the_server_says_for_programs() -> None:
    server = FlakyServer()
    asked = ["usage", "--from", "2026-11-01", "--to", "2026-11-20", "--by", "key,day"]
    async with serving(server) as url:
        assert await headgate(*asked, "--url", url) == (
            0,
            "DAY         KEY    RUNS  PROMPT  ANSWER  USD\n"
            "2026-11-19  alice  2     10      20      0.000225\n"
            "2026-11-20  bob    1     10      20\n"
            "total              3     10      20      0.000225\n",
            f"2026-11-01 to 2026-11-20, as of {AT}\n",
        )
        assert (await headgate("usage", "--url", url))[1] == "RUNS  PROMPT  ANSWER  USD\n3     10      20      0.000225\n"
        code, out, err = await headgate("usage", "--url", url, "--json")
        assert (code, json.loads(out)["total"]["cost_nano_usd"], json.loads(out)["from"], err) == (0, 225_000, "2026-11-01", "")
        assert (await headgate("usage", "--from", "yesterday", "--url", url))[0] == 2
        assert (await headgate("usage", "--by", "tenant", "--url", url))[0] == 2
    paths = [path for _, path in server.requests]
    assert paths == ["/api/v1/usage?from=2026-11-01&to=2026-11-20&group_by=key,day", "/api/v1/usage", "/api/v1/usage"]


async def test_ctrl_c_cancels_the_task() -> None:
    server = FlakyServer(hang)
    async with serving(server) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headgate", "submit", "--url", url, "hello", stdout=-1, stderr=-1
        )
        assert process.stdout is not None
        assert await process.stdout.readexactly(6) == b"It is "
        process.send_signal(2)
        await asyncio.wait_for(server.left.wait(), 10)
        out, err = await process.communicate()
        assert (process.returncode, out, err.decode()) == (130, b"\n", f"run {RUN}\n")
    assert server.requests[-1] == ("POST", f"/api/v1/tasks/{RUN}/cancel")
    assert server.bodies[-1] == {"reason": "interrupted"}


async def test_ctrl_c_on_stream_leaves_the_task_alone() -> None:
    server = FlakyServer(hang)
    async with serving(server) as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "headgate", "stream", "--url", url, RUN, stdout=-1, stderr=-1
        )
        assert process.stdout is not None
        assert await process.stdout.readexactly(6) == b"It is "
        process.send_signal(2)
        await asyncio.wait_for(server.left.wait(), 10)
        assert (await process.communicate())[1] == b""
        assert process.returncode == 130
    assert [method for method, _ in server.requests] == ["GET"]


async def test_no_server() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    for command in (["submit", "hello"], ["stream", RUN], ["list"]):
        assert await headgate(*command, "--url", url) == (
            3,
            "",
            f"headgate: Nothing answers at {url}. `headgate serve` starts a server, --url or HEADGATE_URL names another.\n",
        )


async def test_version_and_usage() -> None:
    assert await headgate("--version") == (0, f"headgate {__version__}\n", "")
    code, _, err = await headgate("strem")
    assert code == 2
    assert "invalid choice: 'strem'" in err
    code, _, err = await headgate("stream", RUN, "--after", "x-1")
    assert code == 2
    assert "a position is a seq (digits) or a stream_id" in err
    code, out, err = await headgate()
    assert (code, out) == (2, "")
    assert "  approvals  list the decisions" in err
