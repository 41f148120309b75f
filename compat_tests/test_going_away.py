"""A server that goes away, with streams open at every door: each is told, and goes on elsewhere (P8, P19)."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from compat_tests.conftest import unused_port
from compat_tests.doors import BrokenOff, Server
from compat_tests.manifest import promise
from compat_tests.served import Shape, served
from compat_tests.stage import staged
from compat_tests.watch import everywhere, seen, shown


@promise("doors.drain", "ws.codes", "grpc.codes", "doors.replica")
def test_streams_of_a_server_that_goes_away_say_so_and_go_on_elsewhere(
    config: dict[str, Any], here: Server, shape: Shape, tmp_path: Path
) -> None:
    """native.md §4, §6: a broken-off stream is no end; 1001 and UNAVAILABLE say to resume. The run does not notice.

    A third server on the same backends is stopped with SIGTERM under readers of a run that lives in the first.
    """
    rpc = {"port": unused_port()}
    leaving = {**config, "server": {"port": 0, "drain_s": 0.1}, "grpc": rpc}
    with staged(here) as stage, ExitStack() as process:
        url = process.enter_context(served(leaving, tmp_path, shape))
        with closing(Server(url, rpc["port"])) as server, everywhere(stage.run, server) as watches:
            stage.say("X_LAST_SEEN")
            for watch in watches.values():
                watch.until("X_LAST_SEEN")
            process.close()
            told: dict[str, Any] = {}
            for (door, _), watch in watches.items():
                with pytest.raises(BrokenOff) as broken:
                    watch.end()
                told[door.name] = broken.value.how
        assert told["sse"]["scope"] == "stream"
        assert (told["sse"]["code"], told["sse"]["retryable"]) == ("draining", True)
        assert (told["websocket"], told["grpc"]) == (1001, grpc.StatusCode.UNAVAILABLE)
        stage.cancel()
        for (door, _), watch in watches.items():
            entries = [event for event in watch.events if "seq" in event]
            rest = seen(door, here, stage.run, entries[-1]["stream_id"])
            assert [*entries, *rest] == shown(door, stage.log())
