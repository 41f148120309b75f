"""The circuit breaker: its theory as a table, and as a machine that many calls use at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from orchestrator.upstreams.breaker import Breaker, Circuit, Outcome, Passage, admits, entered, left, outcome_of, wait_s
from orchestrator.upstreams.config import BreakerConfig
from orchestrator.upstreams.upstream import (
    UpstreamCut,
    UpstreamError,
    UpstreamGarbled,
    UpstreamRejected,
    UpstreamSilent,
    UpstreamTooSlow,
    UpstreamUnreachable,
)

CONFIG = BreakerConfig(failures=3, share=0.5, window=6, open_s=10)
LETTERS: dict[str, Outcome] = {"+": "good", "-": "bad", "?": "unknown"}


def after(outcomes: str, circuit: Circuit | None = None) -> Circuit:
    """The circuit after calls with these outcomes, one after the other, at time 100."""
    circuit = circuit or Circuit()
    for letter in outcomes:
        circuit = left(circuit, circuit.era, LETTERS[letter], 100.0, CONFIG)
    return circuit


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", "closed"),
        ("--", "closed"),
        ("---", "open"),
        ("--+--", "closed"),
        ("--?-", "open"),
        ("?????", "closed"),
        ("-+-+-+", "closed"),
        ("+-+-+-", "open"),
        ("-+-+-", "closed"),
        ("+-+-++", "closed"),
        ("++++++-+-+-", "open"),
        ("-+++++++-+-+", "closed"),
    ],
)
def test_when_it_opens(outcomes: str, state: str) -> None:
    assert after(outcomes).state == state


def test_a_window_that_is_shorter_than_a_row_of_failures() -> None:
    config = BreakerConfig(failures=4, share=1, window=2)
    circuit = left(left(Circuit(), 0, "bad", 0.0, config), 0, "good", 0.0, config)
    for _ in range(2):
        assert circuit.state == "closed"
        circuit = left(circuit, 0, "bad", 0.0, config)
    assert circuit.state == "open"


def test_an_open_circuit_lets_one_call_through_after_its_time() -> None:
    opened = after("---")
    assert [(admits(opened, now), wait_s(opened, now)) for now in (100.0, 109.9, 110.0)] == [
        (False, 10.0),
        (False, pytest.approx(0.1)),
        (True, 0.0),
    ]
    probing = entered(opened)
    assert (probing.state, admits(probing, 999.0), wait_s(probing, 999.0)) == ("half_open", False, 1.0)


@pytest.mark.parametrize(("outcome", "state", "probe_at"), [("+", "closed", 0.0), ("-", "open", 110.0), ("?", "open", 100.0)])
def test_the_probe_decides(outcome: str, state: str, probe_at: float) -> None:
    circuit = after(outcome, entered(after("---")))
    assert (circuit.state, circuit.probe_at, circuit.recent) == (state, probe_at, ())


def test_a_call_from_before_says_nothing() -> None:
    """Calls that began while the circuit was closed go on while it is open, and end when it is half open or closed again."""
    before = after("--")
    opened = after("-", before)
    probing = entered(opened)
    closed = after("+", probing)
    for circuit in (opened, probing, closed):
        for outcome in LETTERS.values():
            assert left(circuit, before.era, outcome, 100.0, CONFIG) == circuit


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "good"),
        (UpstreamUnreachable(), "bad"),
        (UpstreamCut(), "bad"),
        (UpstreamSilent(), "bad"),
        (UpstreamGarbled(), "bad"),
        (UpstreamError(), "bad"),
        (UpstreamRejected(status=500), "bad"),
        (UpstreamRejected(status=429), "bad"),
        (UpstreamRejected(status=408), "bad"),
        (UpstreamRejected(status=502, code="upstream_credentials_refused", retryable=False), "bad"),
        (UpstreamRejected(status=400), "unknown"),
        (UpstreamRejected(status=404), "unknown"),
        (UpstreamRejected(status=409), "unknown"),
        (UpstreamRejected(status=422), "unknown"),
        (UpstreamTooSlow(), "unknown"),
        (ValueError(), "unknown"),
        (KeyboardInterrupt(), "unknown"),
    ],
)
def test_what_the_end_of_a_call_says_of_its_upstream(error: BaseException | None, outcome: Outcome) -> None:
    assert outcome_of(error) == outcome


class Watched:
    """A breaker, its time, and what it told."""

    def __init__(self, config: BreakerConfig | None = CONFIG) -> None:
        self.now = 0.0
        self.told: list[str] = []
        self.breaker = Breaker(config, lambda: self.now, self.told.append)

    def call(self, outcome: Outcome) -> None:
        passage = self.breaker.enter()
        assert passage is not None
        passage.end(outcome)


def opened() -> Watched:
    watched = Watched()
    for _ in range(3):
        watched.call("bad")
    return watched


def test_changes_are_told() -> None:
    watched = opened()
    assert watched.breaker.enter() is None
    watched.now = 10.0
    watched.call("bad")
    watched.now = 20.0
    watched.call("good")
    assert watched.told == ["closed", "open", "half_open", "open", "half_open", "closed"]


def test_a_probe_that_begins_to_answer_lets_the_others_in() -> None:
    """Its last word may be minutes away; what becomes of it then is one call's business."""
    watched = opened()
    watched.now = 10.0
    probe = watched.breaker.enter()
    assert probe is not None
    assert watched.breaker.enter() is None
    probe.began()
    assert watched.breaker.state == "closed"
    probe.end("bad")
    assert watched.breaker.state == "closed"


def test_a_thousand_calls_at_once_send_one_probe() -> None:
    watched = opened()
    watched.now = 10.0
    passages = [watched.breaker.enter() for _ in range(1000)]
    assert sum(passage is not None for passage in passages) == 1


def test_a_probe_that_is_given_up_lets_the_next_call_probe() -> None:
    watched = opened()
    watched.now = 10.0
    watched.call("unknown")
    assert watched.breaker.state == "open"
    watched.call("good")
    assert watched.breaker.state == "closed"


def test_without_a_configuration_it_never_opens() -> None:
    watched = Watched(None)
    for _ in range(1000):
        watched.call("bad")
    assert (watched.breaker.admits, watched.breaker.wait_s, watched.told) == (True, 0.0, [])


class Calls(RuleBasedStateMachine):
    """Calls come, answer, fail and are given up in any order while time passes."""

    passages: Bundle[Passage] = Bundle("passages")

    def __init__(self) -> None:
        super().__init__()
        self.watched = Watched()
        self.out: list[tuple[Passage, bool]] = []

    @rule(target=passages)
    def come(self) -> Passage | st.SearchStrategy[Passage]:
        breaker = self.watched.breaker
        state, admitted = breaker.state, breaker.admits
        passage = breaker.enter()
        assert (passage is not None) == admitted
        assert not (state == "half_open" and admitted)
        if passage is None:
            return Passage(Breaker(None, lambda: 0.0, str), 0, probe=False)  # nobody's: whatever happens to it means nothing
        self.out.append((passage, state == "open"))
        assert breaker.state == ("half_open" if state == "open" else state)
        return passage

    @rule(passage=passages)
    def answer(self, passage: Passage) -> None:
        passage.began()

    @rule(passage=consumes(passages), outcome=st.sampled_from(list(LETTERS.values())))
    def end(self, passage: Passage, outcome: Outcome) -> None:
        passage.end(outcome)

    @rule(passage=passages)
    def end_twice(self, passage: Passage) -> None:
        passage.end("unknown")
        before = self.watched.breaker.state, self.watched.breaker.wait_s
        passage.end("bad")
        assert (self.watched.breaker.state, self.watched.breaker.wait_s) == before

    @rule(seconds=st.sampled_from([0.5, 5.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.watched.now += seconds

    @invariant()
    def states_follow_each_other(self) -> None:
        allowed = {("closed", "open"), ("open", "half_open"), ("half_open", "open"), ("half_open", "closed")}
        told: Sequence[str] = self.watched.told
        assert told[0] == "closed"
        assert set(itertools.pairwise(told)) <= allowed

    @invariant()
    def it_is_never_shut_for_good(self) -> None:
        """Half open means that a probe is out; open means that a call goes through before long."""
        breaker = self.watched.breaker
        if breaker.state == "open":
            assert breaker.wait_s <= CONFIG.open_s
        assert breaker.admits or breaker.wait_s > 0


TestCalls = Calls.TestCase
