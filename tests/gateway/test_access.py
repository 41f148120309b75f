"""Tickets and origins: who may open a stream from a browser. No sockets."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pytest
from multidict import CIMultiDict

from gateway.access.origins import OriginNotAllowed, Origins
from gateway.access.tickets import LIFETIME_S, Ticket, Tickets
from gateway.errors import Unauthorized
from gateway.transports.ws_sink import Allowance
from orchestrator.errors import Unavailable
from orchestrator.runs import Principal

ALICE = Principal("acme", "alice")
RUN = "task-" + "1" * 32


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def tickets(secret: bytes = b"secret", clock: Clock | None = None) -> Tickets:
    async def ask() -> bytes:
        return secret

    return Tickets(ask, clock or Clock())


class TestTickets:
    @pytest.mark.parametrize("run_id", [None, RUN])
    async def test_say_who_and_for_which_run_at_any_replica(self, run_id: str | None) -> None:
        text, issued = await tickets().issue(ALICE, run_id)
        assert await tickets().honour(text) == issued == Ticket(ALICE, 1_000_060_000, run_id)
        assert text.replace(".", "").replace("_", "").replace("-", "").isalnum(), "goes into a URL as it is"

    async def test_are_good_for_a_minute(self) -> None:
        clock = Clock()
        text, _ = await tickets(clock=clock).issue(ALICE)
        clock.now += LIFETIME_S - 0.001
        await tickets(clock=clock).honour(text)
        clock.now += 0.001
        with pytest.raises(Unauthorized):
            await tickets(clock=clock).honour(text)

    async def test_of_another_secret_are_none(self) -> None:
        text, _ = await tickets(b"other").issue(ALICE)
        with pytest.raises(Unauthorized):
            await tickets().honour(text)

    async def test_cannot_be_changed_anywhere(self) -> None:
        text, _ = await tickets().issue(ALICE, RUN)
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        for place, character in enumerate(text):
            for other in ("A", "_", ".", "", alphabet[(alphabet.find(character) + 1) % 64]):
                if other != character:
                    with pytest.raises(Unauthorized):
                        await tickets().honour(text[:place] + other + text[place + 1 :])

    async def test_of_another_form_are_none(self) -> None:
        said, _, signature = (await tickets().issue(ALICE))[0].partition(".")
        padded = base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)).decode()
        texts = [
            "",
            ".",
            "x",
            "\0",
            "ü" * 50,
            f"{said}=.{signature}",
            f"{padded}.{signature}",
            f"{said}.{signature}\n",
            "a" * 10_000,
        ]
        for text in [*texts, f".{signature}", f"{said}.", f" {said}.{signature}", f"{said}.{signature}.{signature}"]:
            with pytest.raises(Unauthorized):
                await tickets().honour(text)

    async def test_the_secret_is_asked_for_once_and_again_if_it_could_not_be_had(self) -> None:
        asked = 0

        async def ask() -> bytes:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise Unavailable
            return b"secret"

        issuing = Tickets(ask, Clock())
        with pytest.raises(Unavailable):
            await issuing.issue(ALICE)
        for _ in range(3):
            await issuing.issue(ALICE)
        assert asked == 2


OWN = [("Origin", "http://console.example.com:8080"), ("Host", "console.example.com:8080")]


class TestOrigins:
    @pytest.mark.parametrize("listed", [[], ["https://app.example.com"], ["*"]])
    def test_programs_send_none(self, listed: Sequence[str]) -> None:
        assert Origins(listed, trust_host=False).check(CIMultiDict(Host="x")) is None

    def test_the_servers_own_pages_where_keys_are_needed(self) -> None:
        assert Origins([], trust_host=True).check(CIMultiDict(OWN)) == OWN[0][1]

    def test_a_strangers_name_for_this_machine_is_not_its_own(self) -> None:
        """DNS rebinding: where nobody needs a key, a page whose name was made to mean 127.0.0.1 is still a stranger's."""
        with pytest.raises(OriginNotAllowed):
            Origins([], trust_host=False).check(CIMultiDict(OWN))

    @pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.9.9.9"])
    def test_the_machines_own_pages(self, host: str) -> None:
        assert Origins([], trust_host=False).check(CIMultiDict(Origin=f"http://{host}", Host=host)) == f"http://{host}"

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("http://localhost:8081", "localhost:8080"),
            ("http://evil.example", "localhost:8080"),
            ("file://localhost:8080", "localhost:8080"),
            ("http://localhost:8080@evil.example", "localhost:8080"),
            ("localhost:8080", "localhost:8080"),
            ("null", "null"),
            ("http://", ""),
            ("http://[::1", "[::1"),
        ],
    )
    def test_everything_else_is_a_stranger(self, origin: str, host: str) -> None:
        for trust_host in (True, False):
            with pytest.raises(OriginNotAllowed):
                Origins(["https://app.example.com"], trust_host=trust_host).check(CIMultiDict(Origin=origin, Host=host))

    def test_a_star_is_everybody(self) -> None:
        assert Origins(["*"], trust_host=False).check(CIMultiDict(Origin="null")) == "null"


def test_an_allowance_is_spent_at_once_or_slowly() -> None:
    clock = Clock()
    allowance = Allowance(per_s=10, burst=40, clock=clock)
    for _ in range(2):
        assert [allowance.wait_s() for _ in range(40)] == [0.0] * 40
        assert [allowance.wait_s() for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
        clock.now += 100
