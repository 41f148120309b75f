"""What the orchestrator counts, as plain calls that whoever serves the numbers implements. No I/O, no library.

Labels are words of our own closed sets and names of the configuration, never text that a client or an upstream chose. Methods on
the path of a token (`append`, `fenced`) cost at most a few microseconds and never raise.
"""

from __future__ import annotations

from typing import Literal, Protocol

from orchestrator.runs import RunState

HedgeOutcome = Literal["won", "lost", "failed"]
Limited = Literal["requests", "tokens", "runs", "streams", "budgets", "unavailable", "uncounted"]
CircuitState = Literal["closed", "half_open", "open"]


class Metrics(Protocol):
    def run_started(self) -> None:
        """A run's log was opened here."""

    def run_ended(self, state: RunState, seconds: float) -> None:
        """An ending was appended here, so many seconds after the run was created."""

    def first_token(self, seconds: float) -> None:
        """The answering agent's first delta, so many seconds after the run was created."""

    def append(self, events: int, seconds: float) -> None:
        """One append took so many events and this long."""

    def fenced(self) -> None:
        """An append was refused because a later attempt has taken over."""

    def gap(self) -> None:
        """A reader was told that events are missing."""

    def upstream_error(self, kind: str) -> None:
        """An upstream failed; `kind` is `UpstreamError.kind`."""

    def upstream_note(self, what: str) -> None:
        """An upstream did something odd; `what` is `Note.what`."""

    def fallback(self, upstream: str) -> None:
        """A call went on to another upstream because this one, a name of the configuration, failed."""

    def hedge(self, upstream: str, outcome: HedgeOutcome) -> None:
        """A second upstream was asked because this one was silent: which spoke first, `won` is the second, or neither did."""

    def circuit(self, upstream: str, state: CircuitState) -> None:
        """The circuit of this upstream is in this state from now on."""

    def tool_called(self, outcome: str, seconds: float) -> None:
        """A call of a tool ended: `success`, `failure` in the tool's own words, or `CallFailed.code`."""

    def takeover(self) -> None:
        """An attempt continued what another had begun."""

    def cached(self, found: Literal["exact", "semantic", "miss"]) -> None:
        """A recorded answer was looked for."""

    def cache_failed(self, why: Literal["slow", "upstream", "log", "store"]) -> None:
        """A question could not be compared with others, or not be remembered."""

    def limited(self, by: Limited) -> None:
        """A request or a reader was refused by this kind of limit; or, as limits could not be checked, refused or let in."""

    def archive_backlog(self, runs: int) -> None:
        """So many ended runs wait to be archived."""

    def archived(self, runs: int) -> None:
        """So many runs were copied to the archive."""


class NoMetrics:
    """Counts nothing. For tests, and for tools that serve no numbers."""

    def run_started(self) -> None: ...

    def run_ended(self, state: RunState, seconds: float) -> None: ...

    def first_token(self, seconds: float) -> None: ...

    def append(self, events: int, seconds: float) -> None: ...

    def fenced(self) -> None: ...

    def gap(self) -> None: ...

    def upstream_error(self, kind: str) -> None: ...

    def upstream_note(self, what: str) -> None: ...

    def fallback(self, upstream: str) -> None: ...

    def hedge(self, upstream: str, outcome: HedgeOutcome) -> None: ...

    def circuit(self, upstream: str, state: CircuitState) -> None: ...

    def tool_called(self, outcome: str, seconds: float) -> None: ...

    def takeover(self) -> None: ...

    def cached(self, found: Literal["exact", "semantic", "miss"]) -> None: ...

    def cache_failed(self, why: Literal["slow", "upstream", "log", "store"]) -> None: ...

    def limited(self, by: Limited) -> None: ...

    def archive_backlog(self, runs: int) -> None: ...

    def archived(self, runs: int) -> None: ...
