"""A circuit breaker per upstream: one that fails too often is not asked for a while, then one call finds out whether it is back.

    closed ──too many failures──► open ──open_s later, one call goes through──► half open ──it answers──► closed
                                    ▲                                               │
                                    └──────────────────it fails─────────────────────┘

`entered` and `left` are the whole of it, functions of a frozen `Circuit`; `Breaker` holds one. A call that began before the
circuit last changed says nothing about it now. There is never more than one probe; when it is given up, the next call probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from orchestrator.metrics import CircuitState as State
from orchestrator.upstreams.config import BreakerConfig
from orchestrator.upstreams.upstream import UpstreamError, UpstreamRejected, UpstreamTooSlow

Outcome = Literal["good", "bad", "unknown"]

PROBING_S = 1.0
"""How long to tell a client to wait while a probe is out: nobody knows how long it takes."""


class Circuit(msgspec.Struct, frozen=True):
    """`recent`: whether the latest calls failed, oldest first. `probe_at`: when an open circuit lets one call through.

    `era` counts the changes of state.
    """

    state: State = "closed"
    recent: tuple[bool, ...] = ()
    probe_at: float = 0.0
    era: int = 0


def admits(circuit: Circuit, now: float) -> bool:
    """Whether a call may go through."""
    return circuit.state == "closed" or (circuit.state == "open" and now >= circuit.probe_at)


def wait_s(circuit: Circuit, now: float) -> float:
    """How long until a call may go through, as far as can be known."""
    if circuit.state == "half_open":
        return PROBING_S
    return max(0.0, circuit.probe_at - now) if circuit.state == "open" else 0.0


def entered(circuit: Circuit) -> Circuit:
    """A call that was admitted goes through."""
    return _turned(circuit, "half_open") if circuit.state == "open" else circuit


def left(circuit: Circuit, era: int, outcome: Outcome, now: float, config: BreakerConfig) -> Circuit:
    """A call that went through in `era` is over."""
    if era != circuit.era or (outcome == "unknown" and circuit.state == "closed"):
        return circuit
    if circuit.state == "half_open":
        match outcome:
            case "good":
                return _turned(circuit, "closed")
            case "bad":
                return _turned(circuit, "open", now + config.open_s)
            case "unknown":
                return _turned(circuit, "open", now)
    recent = (*circuit.recent, outcome == "bad")[-max(config.window, config.failures) :]
    if outcome == "bad" and _too_many(recent, config):
        return _turned(circuit, "open", now + config.open_s)
    return msgspec.structs.replace(circuit, recent=recent)


def _too_many(recent: tuple[bool, ...], config: BreakerConfig) -> bool:
    in_a_row = len(recent) >= config.failures and all(recent[-config.failures :])
    window = recent[-config.window :]
    return in_a_row or (len(window) == config.window and sum(window) >= config.share * config.window)


def _turned(circuit: Circuit, state: State, probe_at: float = 0.0) -> Circuit:
    return Circuit(state, (), probe_at, circuit.era + 1)


def outcome_of(error: BaseException | None) -> Outcome:
    """What the end of a call says of its upstream. A client's mistake and a client's lack of time say nothing."""
    match error:
        case None:
            return "good"
        case UpstreamTooSlow():
            return "unknown"
        case UpstreamRejected(status=status) if 400 <= status < 500 and status not in (408, 429):
            return "unknown"
        case UpstreamError():
            return "bad"
    return "unknown"


class Breaker:
    """The circuit of one upstream, shared by all calls of the process. `config` None: it never opens."""

    def __init__(self, config: BreakerConfig | None, clock: Callable[[], float], turned: Callable[[State], None]) -> None:
        """`clock` is monotonic; `turned` is told the state at first and after every change."""
        self._config = config
        self._clock = clock
        self._turned = turned
        self._circuit = Circuit()
        if config is not None:
            turned(self._circuit.state)

    @property
    def state(self) -> State:
        return self._circuit.state

    @property
    def admits(self) -> bool:
        return admits(self._circuit, self._clock())

    @property
    def wait_s(self) -> float:
        return wait_s(self._circuit, self._clock())

    def enter(self) -> Passage | None:
        """Let a call through, unless the circuit refuses."""
        if not self.admits:
            return None
        self._become(entered(self._circuit))
        return Passage(self, self._circuit.era, probe=self._circuit.state == "half_open")

    def leave(self, era: int, outcome: Outcome) -> None:
        if self._config is not None:
            self._become(left(self._circuit, era, outcome, self._clock(), self._config))

    def _become(self, circuit: Circuit) -> None:
        turned = circuit.state != self._circuit.state
        self._circuit = circuit
        if turned:
            self._turned(circuit.state)


class Passage:
    """One call's way through a breaker. It must be ended; once it is, nothing more that happens to the call counts."""

    def __init__(self, breaker: Breaker, era: int, *, probe: bool) -> None:
        self._breaker = breaker
        self._era: int | None = era
        self._probe = probe

    def began(self) -> None:
        """The upstream answers. That is all a probe wants to know: others need not wait for its last word."""
        if self._probe:
            self.end("good")

    def end(self, outcome: Outcome) -> None:
        if self._era is not None:
            self._breaker.leave(self._era, outcome)
            self._era = None
